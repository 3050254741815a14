"""Lists the parameters that this server does not have: it refuses some of them, and ignores others."""

import json
import logging
from collections.abc import Mapping
from typing import Any

from octavo.server.http.errors import FieldName, InvalidRequest

logger = logging.getLogger(__name__)

# Each name maps to the values that ask for nothing. Null, "", [] and {} never ask for anything.
# Whoever adds a feature removes its row.
NOT_SUPPORTED: dict[str, tuple[object, ...]] = {
    # OpenAI's specification
    "audio": (),
    "modalities": (["text"],),
    "moderation": (),
    "prediction": (),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "verbosity": ("medium",),
    "web_search_options": (),
    # vLLM's extensions
    "allowed_token_ids": (),
    "bad_words": (),
    "documents": (),
    "length_penalty": (1,),
    "logits_processors": (),
    "priority": (0,),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "use_beam_search": (False,),
    # These bind an answer in other APIs and servers.
    "format": (),
    "grammar_lazy": (False,),
    "grammar_triggers": (),
    "guided_decoding_params": (),
    "guided_json_object": (False,),
    "guided_whitespace_pattern": (),
    "output_config": (),
    "output_format": (),
    "response_schema": (),
    "structural_tag": (),
    "text": ({"format": {"type": "text"}},),
}

UNSUPPORTED = "unsupported_parameter"  # OpenAI's code

# These are older names in OpenAI's API, with the parameters that replace them.
REPLACED = {"function_call": "tool_choice", "functions": "tools"}

# These inform whoever runs the service, and change nothing about the answer.
INFORMATIONAL = frozenset(
    {
        "cache_control",
        "metadata",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
    }
)

# These ask a model to reason for longer or shorter. A model that does not reason loses nothing by passing over them.
REASONING = frozenset({"reasoning_effort", "thinking"})


MAX_UNKNOWN = 256  # fields of one request


class ParameterCheck:
    """Checks the fields of a request that its class does not have."""

    MAX_REMEMBERED = 1000  # logged names: a client that invents names must not fill the memory

    def __init__(self) -> None:
        self._logged: set[str] = set()

    def __call__(self, extra: Mapping[str, Any]) -> None:
        """Raises InvalidRequest for a parameter that asks for something this server cannot do, and for too many."""
        if len(extra) > MAX_UNKNOWN:
            raise InvalidRequest(f"The body has {len(extra):,} unknown fields; at most {MAX_UNKNOWN} are ignored.")
        for name, value in extra.items():
            if name in REPLACED:
                _refuse_unless_absent(name, value)
            elif name in NOT_SUPPORTED:
                _refuse_unless_neutral(name, value)
            elif name not in INFORMATIONAL | REASONING:
                self._log_once(name)

    def _log_once(self, name: str) -> None:
        if name not in self._logged and len(self._logged) < self.MAX_REMEMBERED:
            self._logged.add(name)
            logger.warning("ignoring the unknown parameter %r", name[:100])


def _refuse_unless_absent(name: str, value: object) -> None:
    """Raises InvalidRequest unless the value asks for nothing: "none" and "auto" do not without functions."""
    if not is_absent(value) and value not in ("none", "auto"):
        newer = FieldName(REPLACED[name])
        raise InvalidRequest(
            "{param} is not supported by this server; use {newer} instead.", name, UNSUPPORTED, newer=newer
        )


def _refuse_unless_neutral(name: str, value: object) -> None:
    if is_absent(value) or any(_same(value, neutral) for neutral in NOT_SUPPORTED[name]):
        return
    neutral = " or ".join(json.dumps(value) for value in NOT_SUPPORTED[name])
    advice = f"leave it out or set it to {neutral}" if neutral else "leave it out"
    code = "unsupported_value" if neutral else UNSUPPORTED
    raise InvalidRequest("{param} is not supported by this server yet; {advice}.", name, code, advice=advice)


def is_absent(value: object) -> bool:
    """Returns whether the value is null or empty: SDKs send these for what their user did not ask for."""
    return value is None or value in ("", [], {})


def _same(value: object, neutral: object) -> bool:
    """Returns whether two values are equal in JSON, where 0 is 0.0, but false is not 0."""
    return isinstance(value, bool) == isinstance(neutral, bool) and value == neutral
