"""Checks every answer of /v1/responses against the types of OpenAI's own package, and its events against each other."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from openai.types.responses import Response, ResponseStreamEvent

from tests.server.strict import check_types, named_events, take_routed

ENDS = {"response.completed", "response.incomplete", "response.failed"}
KINDS = {
    "message": ("output_text", "text"),
    "reasoning": ("reasoning_text", "text"),
    "function_call": ("function_call_arguments", "arguments"),
}


def validate_whole(payload: Mapping[str, Any]) -> None:
    payload = dict(payload)
    take_routed(payload)
    check_types(Response, payload)


def validate_stream(lines: Sequence[str]) -> None:
    """Checks the order: created, in_progress, items one after the other, and one end that has what the events told."""
    events = named_events(lines)
    for event in events:
        check_types(ResponseStreamEvent, _corrected(event))
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    assert [event["type"] in ENDS for event in events] == [False] * (len(events) - 1) + [True]
    assert len({event["response"]["id"] for event in events if "response" in event}) == 1
    items = _items(events[2:-1], complete=events[-1]["type"] != "response.failed")
    assert events[-1]["response"]["output"] == items
    assert events[-1]["type"] == "response." + events[-1]["response"]["status"]


def _corrected(event: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves the experts out, which are our own. The last event alone has them."""
    corrected = copy.deepcopy(dict(event))
    if corrected["type"] in ENDS:
        take_routed(corrected["response"])
    return corrected


def _items(events: Sequence[Mapping[str, Any]], complete: bool) -> list[Any]:
    """Returns the items that the events build."""
    done: list[Any] = []
    rest = list(events)
    while rest:
        end = next((i for i, event in enumerate(rest) if event["type"] == "response.output_item.done"), None)
        assert end is not None or not complete, "an item was left open"
        item = rest[: None if end is None else end + 1]
        rest = rest[len(item) :]
        assert {event["output_index"] for event in item} == {len(done)}
        if end is not None:
            _check_item(item)
            done.append(item[-1]["item"])
    return done


def _check_item(events: Sequence[Mapping[str, Any]]) -> None:
    first, last = events[0], events[-1]
    assert first["type"] == "response.output_item.added" and first["item"]["status"] == "in_progress"
    assert {event["item_id"] for event in events[1:-1]} == {first["item"]["id"]} == {last["item"]["id"]}
    kind, key = KINDS[last["item"]["type"]]
    deltas = [event for event in events if event["type"] == f"response.{kind}.delta"]
    (whole,) = [event[key] for event in events if event["type"] == f"response.{kind}.done"]
    assert "".join(event["delta"] for event in deltas) == whole
    types = [event["type"].removeprefix("response.") for event in events if event not in deltas]
    is_call = kind == "function_call_arguments"
    inner = [f"{kind}.done"] if is_call else ["content_part.added", f"{kind}.done", "content_part.done"]
    assert types == ["output_item.added", *inner, "output_item.done"]
    assert whole == (last["item"]["arguments"] if is_call else last["item"]["content"][0]["text"])
