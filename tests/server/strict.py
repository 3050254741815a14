"""Checks what is sent against an SDK's types, more strictly than the SDK does."""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import pydantic


def check_types(model: Any, payload: Mapping[str, Any]) -> None:
    """Checks that each value has exactly its type and each key is known; `model` may be a union."""
    refuse_extra(_adapter(model).validate_json(json.dumps(payload), strict=True))


@cache
def _adapter(model: Any) -> pydantic.TypeAdapter[Any]:
    """Makes the adapter of a type once, since that of a union of events takes half a second."""
    return pydantic.TypeAdapter(model)


def take_routed(holder: dict[str, Any]) -> None:
    """Takes out the experts of an answer, which are an extension: there is an id for each weight, or there is none."""
    ids, weights = holder.pop("routed_experts", None), holder.pop("routed_experts_weights", None)
    assert ids is weights is None or len(ids) == len(weights)


def refuse_extra(value: Any) -> None:
    if isinstance(value, pydantic.BaseModel):
        assert not value.model_extra, f"{type(value).__name__} has no {set(value.model_extra)}"
        for name in type(value).model_fields:
            refuse_extra(getattr(value, name))
    elif isinstance(value, list):
        for item in value:
            refuse_extra(item)


def named_events(lines: Sequence[str]) -> list[dict[str, Any]]:
    """Parses a stream whose events are `event: TYPE`, `data: ...` and an empty line, with comments between them."""
    rest = [line for line in lines if not line.startswith(":")]
    while rest and rest[0] == "":
        rest.pop(0)
    events = []
    while any(rest):
        name, data, end = rest[:3]
        assert name.startswith("event: ") and data.startswith("data: ") and end == "", rest[:3]
        assert not set("\x85\u2028\u2029") & set(data), "clients would split the line there"
        events.append(json.loads(data.removeprefix("data: "), parse_constant=refuse_constant))
        assert events[-1]["type"] == name.removeprefix("event: ")
        rest = rest[3:]
        while rest and rest[0] == "":
            rest.pop(0)
    return events


def refuse_constant(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")
