"""Tests that an answer's parts become items, one open at a time, and that every change is told once."""

from collections.abc import Iterable

from octavo.server.conversation.items import Change, Closed, Extended, ItemAssembler, Opened
from octavo.server.conversation.parts import Part, Text, ToolCall, ToolCallArguments, ToolCallStart

START = ToolCallStart(0, "a", "f")
BRACE, REST = ToolCallArguments(0, "{"), ToolCallArguments(0, "}")


def changes_of(*parts: Part) -> list[Change]:
    """Returns the changes that the parts make, and the last close."""
    items = ItemAssembler()
    return [*(change for part in parts for change in items.feed(part)), *items.close()]


def closed(changes: Iterable[Change]) -> list[Closed]:
    return [change for change in changes if isinstance(change, Closed)]


def test_text_grows_until_a_call_closes_it() -> None:
    assert changes_of(Text("It is"), Text(" 5."), START, BRACE, REST) == [
        Opened(0, Text("")),
        Extended(0, Text("It is")),
        Extended(0, Text(" 5.")),
        Closed(0, Text("It is 5.")),
        Opened(1, ToolCall("a", "f", "")),
        Extended(1, BRACE),
        Extended(1, REST),
        Closed(1, ToolCall("a", "f", "{}")),
    ]


def test_a_call_or_text_closes_a_call() -> None:
    changes = changes_of(START, BRACE, ToolCallStart(1, "b", "g"), Text("c"))
    assert closed(changes) == [
        Closed(0, ToolCall("a", "f", "{")),
        Closed(1, ToolCall("b", "g", "")),
        Closed(2, Text("c")),
    ]


def test_arguments_without_an_open_call_change_nothing() -> None:
    assert changes_of(BRACE) == []
    assert closed(changes_of(Text("a"), BRACE)) == [Closed(0, Text("a"))]


def test_an_answer_of_nothing_has_no_items() -> None:
    items = ItemAssembler()
    assert (list(items.close()), items.opened) == ([], 0)


def test_nothing_is_closed_twice() -> None:
    items = ItemAssembler()
    items.open(Text(""))
    assert list(items.close()) == [Closed(0, Text(""))]
    assert list(items.close()) == []
