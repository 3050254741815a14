"""Tests that text and calls become content blocks, and that the events tell the same as the blocks."""

from collections.abc import Iterable
from typing import Any

import pytest

from octavo.server.anthropic.content import Content
from octavo.server.conversation.parts import ParsedDelta, Part, Text, ToolCallArguments, ToolCallStart

CALLS: tuple[Part, ...] = (
    Text("Let me "),
    Text("see."),
    ToolCallStart(0, "a", "f"),
    ToolCallArguments(0, '{"x"'),
    ToolCallArguments(0, ": 1}"),
    ToolCallStart(1, "b", "g"),
    ToolCallArguments(1, "{}"),
)


def run(parts: Iterable[Part]) -> tuple[list[Any], list[Any]]:
    """Returns the blocks and the events, with each part in a delta of its own."""
    content = Content()
    events = [event for part in parts for event in content.feed(ParsedDelta(0, (part,)))]
    events += content.end()
    return content.blocks, events


def test_text_then_calls() -> None:
    blocks, events = run(CALLS)
    assert blocks == [
        {"type": "text", "text": "Let me see."},
        {"type": "tool_use", "id": "a", "name": "f", "input": {"x": 1}},
        {"type": "tool_use", "id": "b", "name": "g", "input": {}},
    ]
    assert [(event.get("index"), event["type"]) for event in events] == [
        (0, "content_block_start"),
        (None, "ping"),
        (0, "content_block_delta"),
        (0, "content_block_delta"),
        (0, "content_block_stop"),
        (1, "content_block_start"),
        (1, "content_block_delta"),
        (1, "content_block_delta"),
        (1, "content_block_stop"),
        (2, "content_block_start"),
        (2, "content_block_delta"),
        (2, "content_block_stop"),
    ]
    assert events[0]["content_block"] == {"type": "text", "text": ""}
    assert events[5]["content_block"] == {"type": "tool_use", "id": "a", "name": "f", "input": {}}


def test_one_delta_or_many() -> None:
    whole = Content()
    events = [*whole.feed(ParsedDelta(0, CALLS)), *whole.end()]
    assert (whole.blocks, events) == run(CALLS)


@pytest.mark.parametrize("arguments", ["", '{"x": ', "[1]", "nonsense"])
def test_a_call_that_is_no_object_has_an_empty_input(arguments: str) -> None:
    blocks, _ = run([ToolCallStart(0, "a", "f"), ToolCallArguments(0, arguments)])
    assert blocks == [{"type": "tool_use", "id": "a", "name": "f", "input": {}}]


def test_nothing() -> None:
    assert run([]) == ([], [])
