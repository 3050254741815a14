"""Items are how an answer is told in APIs that have no chat message: reasoning, text and calls, one after the other.

    parts      Text "It is"    Text " 5."    ToolCallStart           ToolCallArguments    the end
    changes    Opened 0        Extended 0    Closed 0, Opened 1      Extended 1           Closed 1
               Extended 0

One item is open at a time: a call closes the text before it, and text or another call closes that call, as text closes
reasoning. Each API says how it words a change; what the changes are is decided here.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from octavo.server.conversation.parts import Part, Reasoning, Text, ToolCall, ToolCallArguments, ToolCallStart

Item = Text | Reasoning | ToolCall


@dataclass(frozen=True, slots=True)
class Opened:
    """An item begins. It has no text or arguments yet."""

    index: int  # counts the items of the answer from 0
    item: Item


@dataclass(frozen=True, slots=True)
class Extended:
    """The open item grows: text and reasoning by more of it, a call by arguments."""

    index: int
    part: Text | Reasoning | ToolCallArguments


@dataclass(frozen=True, slots=True)
class Closed:
    """An item is whole."""

    index: int
    item: Item


Change = Opened | Extended | Closed


class ItemAssembler:
    """Assembles the items of one answer from its parts, and returns every change on the way."""

    def __init__(self) -> None:
        self.opened = 0  # the number of items so far, the open one included
        self._open: Item | None = None
        self._fragments: list[str] = []  # the open item's text or arguments

    def feed(self, part: Part) -> Sequence[Change]:
        """Returns the changes that the part makes. Arguments without an open call make none."""
        match part:
            case Text(text) | Reasoning(text):
                kind = type(part)
                begun = () if isinstance(self._open, kind) else self.open(kind(""))
                return (*begun, self._extend(part, text))
            case ToolCallStart(_, id, name):
                return self.open(ToolCall(id, name, ""))
            case ToolCallArguments(_, fragment):
                return (self._extend(part, fragment),) if isinstance(self._open, ToolCall) else ()

    def open(self, item: Item) -> Sequence[Change]:
        """Opens an item that is empty; closes the one before it."""
        closed = self.close()
        self._open, self._fragments = item, []
        self.opened += 1
        return (*closed, Opened(self.opened - 1, item))

    def close(self) -> Sequence[Change]:
        """Closes the open item, as after the last part. Returns nothing when none is open."""
        if self._open is None:
            return ()
        closed = Closed(self.opened - 1, _whole(self._open, "".join(self._fragments)))
        self._open = None
        return (closed,)

    def _extend(self, part: Text | Reasoning | ToolCallArguments, fragment: str) -> Extended:
        self._fragments.append(fragment)
        return Extended(self.opened - 1, part)


def _whole(item: Item, content: str) -> Item:
    return replace(item, arguments=content) if isinstance(item, ToolCall) else replace(item, text=content)
