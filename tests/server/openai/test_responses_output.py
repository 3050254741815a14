"""Tests that text and calls become output items, and that the events tell the same as the items."""

from collections.abc import Iterable
from typing import Any

from octavo.server.conversation.parts import ParsedDelta, Part, Text, ToolCallArguments, ToolCallStart
from octavo.server.openai.responses_output import OutputItems

CALLS: tuple[Part, ...] = (
    Text("Let me "),
    Text("see."),
    ToolCallStart(0, "call_a", "f"),
    ToolCallArguments(0, '{"x"'),
    ToolCallArguments(0, ": 1}"),
    ToolCallStart(1, "call_b", "g"),
    ToolCallArguments(1, "{}"),
)


def run(parts: Iterable[Part]) -> tuple[list[Any], list[Any]]:
    """Returns the items and the events, with each part in a delta of its own."""
    output = OutputItems("key", None)
    events = [event for part in parts for event in output.feed(ParsedDelta(0, (part,)))]
    events += output.end("completed")
    return output.items, events


def test_text_then_calls() -> None:
    items, events = run(CALLS)
    assert [item["type"] for item in items] == ["message", "function_call", "function_call"]
    assert [item["id"] for item in items] == ["msg_key_0", "fc_key_1", "fc_key_2"]
    assert items[0]["content"][0]["text"] == "Let me see."
    assert [(item["call_id"], item["name"], item["arguments"]) for item in items[1:]] == [
        ("call_a", "f", '{"x": 1}'),
        ("call_b", "g", "{}"),
    ]
    assert [(event["output_index"], event["type"].removeprefix("response.")) for event in events] == [
        (0, "output_item.added"),
        (0, "content_part.added"),
        (0, "output_text.delta"),
        (0, "output_text.delta"),
        (0, "output_text.done"),
        (0, "content_part.done"),
        (0, "output_item.done"),
        (1, "output_item.added"),
        (1, "function_call_arguments.delta"),
        (1, "function_call_arguments.delta"),
        (1, "function_call_arguments.done"),
        (1, "output_item.done"),
        (2, "output_item.added"),
        (2, "function_call_arguments.delta"),
        (2, "function_call_arguments.done"),
        (2, "output_item.done"),
    ]


def test_one_delta_or_many() -> None:
    whole = OutputItems("key", None)
    events = [*whole.feed(ParsedDelta(0, CALLS)), *whole.end("completed")]
    assert (whole.items, events) == run(CALLS)


def test_events_are_snapshots() -> None:
    _, events = run(CALLS)
    assert events[0]["item"]["content"] == [] and events[0]["item"]["status"] == "in_progress"
    assert events[1]["part"]["text"] == ""
    assert events[7]["item"]["arguments"] == ""


def test_calls_alone_need_no_message() -> None:
    items, _ = run(CALLS[2:])
    assert [item["type"] for item in items] == ["function_call", "function_call"]


def test_text_after_a_call_is_a_new_message() -> None:
    items, _ = run([*CALLS[2:5], Text("b")])
    assert [item["type"] for item in items] == ["function_call", "message"]


def test_what_is_cut_is_incomplete_only_at_the_end() -> None:
    output = OutputItems("key", None)
    for _ in output.feed(ParsedDelta(0, CALLS)):
        pass
    for _ in output.end("incomplete"):
        pass
    assert [item["status"] for item in output.items] == ["completed", "completed", "incomplete"]
