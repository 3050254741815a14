"""Defines the fields that ask which experts served each token, or that change what the routers choose."""

from typing import Annotated, Any

from pydantic import Field

from octavo.engine.api import ExpertControl, ExpertShape
from octavo.server.http.errors import InvalidRequest
from octavo.server.http.fields import Object, refused_as

MAX_CONTROLLED = 16_384  # pairs of a layer and an expert; the largest models have about as many
MAX_BIAS = 100  # as that of a token's logit

_Pair = Annotated[list[int], Field(min_length=2, max_length=2)]
_Triple = Annotated[list[float], Field(min_length=3, max_length=3)]
ExpertMask = Annotated[
    Annotated[list[_Pair], Field(max_length=MAX_CONTROLLED, fail_fast=True)],
    refused_as(f"must be an array of at most {MAX_CONTROLLED:,} pairs [layer, expert]"),
]
ExpertBias = Annotated[
    Annotated[list[_Triple], Field(max_length=MAX_CONTROLLED, fail_fast=True)],
    refused_as(f"must be an array of at most {MAX_CONTROLLED:,} triples [layer, expert, number]"),
]


class ExpertFields(Object):
    """Holds what a request may say of the experts of a sparse model."""

    return_routed_experts: bool | None = None
    """Asks which experts served each token of the prompt and the answer, and with what weights.

    Each choice then has `routed_experts` and `routed_experts_weights`. This is an extension, as in SGLang.
    """
    routed_experts_start_len: int | None = Field(None, ge=0)
    """Leaves out the experts of so many positions from the beginning, which must not go beyond the prompt.

    The default is 0. This is an extension, as in SGLang.
    """
    expert_mask: ExpertMask | None = None
    """Keeps experts from being chosen, given as [layer, expert]; the next best steps in.

    The server must be started to allow it. This is an extension.
    """
    expert_bias: ExpertBias | None = None
    """Adds numbers from -100 to 100 to the logits of experts, given as [layer, expert, number], before the choice.

    The server must be started to allow it. This is an extension.
    """

    @property
    def routes_from(self) -> int | None:
        """Returns the first position whose experts are told; None: those of no position are."""
        return (self.routed_experts_start_len or 0) if self.return_routed_experts else None

    def expert_control(self) -> ExpertControl | None:
        """Returns what the routers have to heed. If a pair has two biases, the last one counts."""
        masked = tuple(dict.fromkeys((layer, expert) for layer, expert in self.expert_mask or ()))
        added = {(int(layer), int(expert)): number for layer, expert, number in self.expert_bias or ()}
        biases = tuple((layer, expert, number) for (layer, expert), number in added.items())
        return ExpertControl(masked, biases) if masked or biases else None


def topic_of(metadata: dict[str, Any] | None) -> str:
    """Returns the label under which a request counts, or "" if it has none."""
    topic = (metadata or {}).get("topic")
    return topic if isinstance(topic, str) else ""


def check_experts(request: ExpertFields, shape: ExpertShape | None, allowed: bool) -> None:
    """Raises InvalidRequest for what the model does not have, or what the server does not let clients do."""
    controls = {"expert_mask": request.expert_mask, "expert_bias": request.expert_bias}
    for name, asked in {"return_routed_experts": request.return_routed_experts, **controls}.items():
        if asked and shape is None:
            raise InvalidRequest("{param} needs a sparse model; this one is dense, so leave it out.", name)
        if asked and name in controls and not allowed:
            raise InvalidRequest(
                "{param} is refused by this server; start it with --allow-expert-control to allow it.", name
            )
    if shape is not None:
        _check_control(request, shape)


def _check_control(request: ExpertFields, shape: ExpertShape) -> None:
    for *pair, number in request.expert_bias or ():
        if not all(each.is_integer() for each in pair):
            raise InvalidRequest("{param} should begin with whole numbers in each triple.", "expert_bias")
        if abs(number) > MAX_BIAS:
            raise InvalidRequest("{param} should add numbers from -{most} to {most}.", "expert_bias", most=MAX_BIAS)
    control = request.expert_control() or ExpertControl()
    parts = {"expert_mask": ExpertControl(masked=control.masked), "expert_bias": ExpertControl(biases=control.biases)}
    for field, part in parts.items():
        if (reason := shape.why_refused(part)) is not None:
            raise InvalidRequest("{param}: {reason}", field, reason=reason)
