"""The content of an answer of /v1/messages: blocks, which come to be part by part, and the events that tell how."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from typing_extensions import TypedDict

from octavo.server.conversation.parts import ParsedDelta, Text, ToolCallArguments, ToolCallStart

Event = Mapping[str, object]  # its type, and what that type has; anthropic.StreamEvent describes them


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


@dataclass(frozen=True, slots=True)
class _Text:
    fragments: list[str] = field(default_factory=list)

    def block(self) -> TextContent:
        return {"type": "text", "text": "".join(self.fragments)}


@dataclass(frozen=True, slots=True)
class _ToolUse:
    id: str
    name: str
    fragments: list[str] = field(default_factory=list)

    def block(self) -> ToolUseContent:
        return {"type": "tool_use", "id": self.id, "name": self.name, "input": _object("".join(self.fragments))}


class Content:
    """One block is open at a time: a call closes the text before it, and text or another call closes that."""

    def __init__(self) -> None:
        self.blocks: list[ContentBlock] = []  # those that are whole
        self._open: _Text | _ToolUse | None = None

    def feed(self, parsed: ParsedDelta) -> Iterator[Event]:
        for part in parsed.parts:
            match part:
                case Text(text):
                    if not isinstance(self._open, _Text):
                        yield from self._begin(_Text())
                    yield self._delta(text, {"type": "text_delta", "text": text})
                case ToolCallStart(_, id, name):
                    yield from self._begin(_ToolUse(id, name))
                case ToolCallArguments(_, fragment) if isinstance(self._open, _ToolUse):
                    yield self._delta(fragment, {"type": "input_json_delta", "partial_json": fragment})

    def end(self) -> Iterator[Event]:
        """After the last delta. An answer of nothing has no blocks."""
        if self._open is not None:
            yield {"type": "content_block_stop", "index": len(self.blocks)}
            self.blocks.append(self._open.block())
            self._open = None

    def _begin(self, block: _Text | _ToolUse) -> Iterator[Event]:
        yield from self.end()
        self._open = block
        yield {"type": "content_block_start", "index": len(self.blocks), "content_block": block.block()}
        if not self.blocks:
            yield {"type": "ping"}

    def _delta(self, fragment: str, delta: TextDelta | InputDelta) -> Event:
        assert self._open is not None
        self._open.fragments.append(fragment)
        return {"type": "content_block_delta", "index": len(self.blocks), "delta": delta}


def _object(text: str) -> dict[str, Any]:
    """Empty for what is none: a call may have been cut, and the shape has no room for half of one."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
