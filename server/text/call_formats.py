"""Describes the forms in which models write calls of tools, and recognises the form that a chat template writes."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from octavo.server.text import harmony

CALL, END_OF_CALL = "<tool_call>", "</tool_call>"  # ChatML models write calls between these tags
PYTHON_TAG = "<|python_tag|>"  # Llama's models write it before some calls
FUNCTION, END_OF_FUNCTION = "<function=", "</function>"  # Qwen3-Coder: <function=NAME> has parameters in it
PARAMETER, END_OF_PARAMETER = "<parameter=", "</parameter>"  # <parameter=KEY> has a value in it, as plain text
_NAMED = re.compile(r"\s*(?P<name>[\w.-]+)(?:\[CALL_ID\][\w-]*)?\[ARGS\]\s*")  # f[ARGS]{
_TAGGED = re.compile(
    rf"\s*{FUNCTION}(?P<name>[^>]*)>\s*{PARAMETER}(?P<key>[^>]*)>\s*"
    rf"(?P<value>[^<]*?)\s*{END_OF_PARAMETER}\s*{END_OF_FUNCTION}\s*{END_OF_CALL}"
)


@dataclass(frozen=True, slots=True)
class CallFormat:
    """Describes how a model writes calls: a marker, then {"name": ..., "arguments": ...}, or an array of such objects.

    Mistral's newer models write name[ARGS]{...} after each marker; the parser understands that in every format.
    Qwen3-Coder writes names and arguments as tags, and its values as plain text; tagged_calls.py shows it.
    """

    marker: str  # empty: a call is an object alone, as in Llama's models
    end: str = ""  # the marker after a call; empty: there is none
    named: bool = False  # the model writes name[ARGS]{...}
    tagged: bool = False  # the model writes <function=NAME><parameter=KEY>...
    harmony: bool = False  # the model writes its whole answer in harmony
    key: str = "arguments"  # of the arguments in the object

    def tokens(self) -> tuple[str, ...]:
        """Returns texts that may be special tokens of the vocabulary, which decoding would hide."""
        if self.harmony:
            return harmony.MARKERS
        texts = (self.marker or PYTHON_TAG, self.end, "[ARGS]", "[CALL_ID]", CALL, END_OF_CALL)
        return tuple(dict.fromkeys(filter(None, texts)))


JSON = CallFormat(CALL, END_OF_CALL)
MISTRAL = CallFormat("[TOOL_CALLS]")
MISTRAL_NAMED = CallFormat("[TOOL_CALLS]", named=True)
LLAMA = CallFormat("", key="parameters")
TAGGED = CallFormat(CALL, END_OF_CALL, tagged=True)
GRANITE = CallFormat("<|tool_call|>")
HARMONY = CallFormat(harmony.CHANNEL, harmony.CALL, harmony=True)


def recognised(prompt: str, called: str, name: str, arguments: Mapping[str, Any]) -> CallFormat | None:
    """Returns the format in which a template has written a call of `name`, or None if it is none of the known ones.

    `prompt` is a rendered conversation, ready for the assistant; `called` is the same with the call after it.
    """
    if (written := harmony.arguments_of(called, name)) is not None:
        return HARMONY if _object(written) == arguments else None
    for marked in (JSON, MISTRAL):
        _, marker, written = called.rpartition(marked.marker)
        if not marker:
            continue
        head = _NAMED.match(written)
        if head is not None and head["name"] == name:
            return MISTRAL_NAMED if marked is MISTRAL and _object(written[head.end() :]) == arguments else None
        if (tags := _TAGGED.match(written)) is not None and tags["name"] == name:
            return TAGGED if {tags["key"]: _object(tags["value"])} == arguments else None
        key = _key(_object(written.lstrip().removeprefix("[")), name, arguments)
        return None if key is None or marked.end not in written else replace(marked, key=key)
    start = called.find("{", len(prompt.rstrip()))
    before = called[: max(start, 0)].rstrip().removesuffix(PYTHON_TAG).rstrip()
    key = _key(_object(called[start:]), name, arguments) if start >= 0 and before == prompt.rstrip() else None
    return None if key is None else replace(LLAMA, key=key)


def taught(plain: str, told: str) -> CallFormat | None:
    """Returns the format of which a template tells the model in words, without writing calls itself; else None.

    `told` is the conversation `plain`, rendered with tools.
    """
    return GRANITE if GRANITE.marker in told and GRANITE.marker not in plain else None


def _key(call: Any, name: str, arguments: Mapping[str, Any]) -> str | None:
    """Returns the key under which the call has the arguments, or None if it is another call or none."""
    if not isinstance(call, dict) or call.get("name") != name:
        return None
    return next((key for key in ("arguments", "parameters") if call.get(key) == arguments), None)


def _object(text: str) -> Any:
    """Returns the JSON value with which the text begins, after space; None if it begins with none."""
    try:
        return json.JSONDecoder().raw_decode(text.lstrip())[0]
    except (ValueError, RecursionError):
        return None
