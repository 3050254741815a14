"""Makes the content of an answer of /v1/messages: blocks, and the events that tell how they grow part by part."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

from typing_extensions import TypedDict

from octavo.server.conversation.items import Change, Closed, Extended, Item, ItemAssembler, Opened
from octavo.server.conversation.parts import ParsedDelta, Reasoning, Text, ToolCall, ToolCallArguments
from octavo.server.http.reading import read_json

Event = Mapping[str, object]  # described by answer.MessageEvent
SIGNATURE = "unsigned"  # Anthropic signs what its models have thought. Clients send the signature back, unread.


class TextContent(TypedDict):
    type: Literal["text"]
    text: str


class ThinkingContent(TypedDict):
    type: Literal["thinking"]
    thinking: str
    signature: str


class ToolUseContent(TypedDict):
    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


ContentBlock = TextContent | ThinkingContent | ToolUseContent


class TextDelta(TypedDict):
    type: Literal["text_delta"]
    text: str


class ThinkingDelta(TypedDict):
    type: Literal["thinking_delta"]
    thinking: str


class SignatureDelta(TypedDict):
    type: Literal["signature_delta"]
    signature: str


class InputDelta(TypedDict):
    type: Literal["input_json_delta"]
    partial_json: str


BlockDelta = TextDelta | ThinkingDelta | SignatureDelta | InputDelta


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
                    yield _extended(index, _delta(part))
                case Closed(index, item):
                    if isinstance(item, Reasoning):
                        yield _extended(index, {"type": "signature_delta", "signature": SIGNATURE})
                    yield {"type": "content_block_stop", "index": index}
                    self.blocks.append(_signed(_block(item)))


def _extended(index: int, delta: BlockDelta) -> Event:
    return {"type": "content_block_delta", "index": index, "delta": delta}


def _block(item: Item) -> ContentBlock:
    match item:
        case Text(text):
            return {"type": "text", "text": text}
        case Reasoning(text):
            return {"type": "thinking", "thinking": text, "signature": ""}
        case ToolCall(id, name, arguments):
            return {"type": "tool_use", "id": id, "name": name, "input": _object(arguments)}


def _signed(block: ContentBlock) -> ContentBlock:
    """Returns a whole block; the signature of what the model has thought comes last."""
    return {**block, "signature": SIGNATURE} if block["type"] == "thinking" else block


def _delta(part: Text | Reasoning | ToolCallArguments) -> BlockDelta:
    match part:
        case Text(text):
            return {"type": "text_delta", "text": text}
        case Reasoning(text):
            return {"type": "thinking_delta", "thinking": text}
        case ToolCallArguments(_, fragment):
            return {"type": "input_json_delta", "partial_json": fragment}


def _object(text: str) -> dict[str, Any]:
    """Reads a JSON object. Where a call was cut it has what is whole, as Anthropic's clients read the events."""
    try:
        value = read_json(text, partial=True)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
