"""Makes the content of an answer of /v1/messages: blocks, and the events that tell how they grow part by part."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

from typing_extensions import TypedDict

from octavo.server.conversation.items import Change, Closed, Extended, Item, ItemAssembler, Opened
from octavo.server.conversation.parts import ParsedDelta, Text, ToolCallArguments
from octavo.server.http.reading import read_json

Event = Mapping[str, object]  # described by answer.MessageEvent


class TextContent(TypedDict):
    type: Literal["text"]
    text: str


class ToolUseContent(TypedDict):
    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


ContentBlock = TextContent | ToolUseContent


class TextDelta(TypedDict):
    type: Literal["text_delta"]
    text: str


class InputDelta(TypedDict):
    type: Literal["input_json_delta"]
    partial_json: str


class Content:
    """Turns the items of an answer into content blocks, and their changes into events."""

    def __init__(self) -> None:
        self.blocks: list[ContentBlock] = []  # whole blocks
        self._items = ItemAssembler()

    def feed(self, parsed: ParsedDelta) -> Iterator[Event]:
        """Yields the events of a delta."""
        for part in parsed.parts:
            yield from self._events(self._items.feed(part))

    def end(self) -> Iterator[Event]:
        """Yields the events after the last delta. An answer of nothing has no blocks."""
        yield from self._events(self._items.close())

    def _events(self, changes: Iterable[Change]) -> Iterator[Event]:
        for change in changes:
            match change:
                case Opened(index, item):
                    yield {"type": "content_block_start", "index": index, "content_block": _block(item)}
                    if index == 0:
                        yield {"type": "ping"}
                case Extended(index, part):
                    yield {"type": "content_block_delta", "index": index, "delta": _delta(part)}
                case Closed(index, item):
                    yield {"type": "content_block_stop", "index": index}
                    self.blocks.append(_block(item))


def _block(item: Item) -> ContentBlock:
    if isinstance(item, Text):
        return {"type": "text", "text": item.text}
    return {"type": "tool_use", "id": item.id, "name": item.name, "input": _object(item.arguments)}


def _delta(part: Text | ToolCallArguments) -> TextDelta | InputDelta:
    if isinstance(part, Text):
        return {"type": "text_delta", "text": part.text}
    return {"type": "input_json_delta", "partial_json": part.fragment}


def _object(text: str) -> dict[str, Any]:
    """Reads a JSON object. Where a call was cut it has what is whole, as Anthropic's clients read the events."""
    try:
        value = read_json(text, partial=True)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
