"""The output of /v1/responses: items, which come to be part by part, and the events that tell how."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from typing_extensions import TypedDict

from octavo.server.conversation.parts import ParsedDelta, Text, ToolCallArguments, ToolCallStart
from octavo.server.openai.logprobs import ChatTokenLogprob, chat_logprobs
from octavo.server.text.tokenizer import Tokenizer

ItemStatus = Literal["in_progress", "completed", "incomplete"]
Event = Mapping[str, object]  # its type, and what that type has; responses.StreamEvent describes them


class OutputText(TypedDict):
    type: Literal["output_text"]
    text: str
    annotations: list[str]  # there are none
    logprobs: list[ChatTokenLogprob]


class OutputMessage(TypedDict):
    type: Literal["message"]
    id: str
    role: Literal["assistant"]
    status: ItemStatus
    content: list[OutputText]


class FunctionCallItem(TypedDict):
    type: Literal["function_call"]
    id: str
    call_id: str
    name: str
    arguments: str
    status: ItemStatus


class TopToken(TypedDict):
    token: str
    logprob: float


class TextToken(TopToken):
    """Unlike those of the whole text, the tokens of an event have no bytes."""

    top_logprobs: list[TopToken]


OutputItem = OutputMessage | FunctionCallItem


@dataclass(frozen=True, slots=True)
class _Message:
    id: str
    fragments: list[str] = field(default_factory=list)
    logprobs: list[ChatTokenLogprob] = field(default_factory=list)

    def part(self) -> OutputText:
        text = "".join(self.fragments)
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": [*self.logprobs]}

    def item(self, status: ItemStatus) -> OutputMessage:
        """Its one part is there from the first event of the part on, not from that of the item."""
        content = [] if status == "in_progress" else [self.part()]
        return {"type": "message", "id": self.id, "role": "assistant", "status": status, "content": content}


@dataclass(frozen=True, slots=True)
class _Call:
    id: str
    call_id: str
    name: str
    fragments: list[str] = field(default_factory=list)

    def item(self, status: ItemStatus) -> FunctionCallItem:
        return {
            "type": "function_call",
            "id": self.id,
            "call_id": self.call_id,
            "name": self.name,
            "arguments": "".join(self.fragments),
            "status": status,
        }


class Output:
    """One item is open at a time: a call closes the text before it, and text or another call closes that.

    text "It is"    item.added part.added text.delta
    text " 5."      text.delta
    a call begins   text.done part.done item.done, item.added
    its arguments   arguments.delta ...
    the end         arguments.done item.done
    """

    def __init__(self, key: str, tokenizer: Tokenizer | None) -> None:
        """key: what the ids of items are made of. tokenizer: for log-probabilities; None without them."""
        self.items: list[OutputItem] = []  # those that are whole
        self._key = key
        self._tokenizer = tokenizer
        self._open: _Message | _Call | None = None

    def feed(self, parsed: ParsedDelta) -> Iterator[Event]:
        """The log-probabilities of a delta go with the first text in it."""
        logprobs = chat_logprobs(self._tokenizer, parsed.logprobs)["content"] if self._tokenizer is not None else []
        for part in parsed.parts:
            match part:
                case Text(text):
                    yield from self._text(text, logprobs)
                    logprobs = []
                case ToolCallStart(_, call_id, name):
                    yield from self._close("completed")
                    self._open = _Call(self._id("fc"), call_id, name)
                    yield self._item("output_item.added", self._open.item("in_progress"))
                case ToolCallArguments(_, fragment) if isinstance(self._open, _Call):
                    self._open.fragments.append(fragment)
                    yield self._within(self._open, "function_call_arguments.delta", delta=fragment)

    def end(self, status: ItemStatus) -> Iterator[Event]:
        """After the last delta. An answer of nothing is an empty message."""
        if self._open is None and not self.items:
            yield from self._begin_message()
        yield from self._close(status)

    def _text(self, text: str, logprobs: list[ChatTokenLogprob]) -> Iterator[Event]:
        if not isinstance(self._open, _Message):
            yield from self._close("completed")
            yield from self._begin_message()
        assert isinstance(self._open, _Message)
        self._open.fragments.append(text)
        self._open.logprobs.extend(logprobs)
        told = [_without_bytes(token) for token in logprobs]
        yield self._within(self._open, "output_text.delta", content_index=0, delta=text, logprobs=told)

    def _begin_message(self) -> Iterator[Event]:
        self._open = _Message(self._id("msg"))
        yield self._item("output_item.added", self._open.item("in_progress"))
        yield self._within(self._open, "content_part.added", content_index=0, part=self._open.part())

    def _close(self, status: ItemStatus) -> Iterator[Event]:
        match self._open:
            case _Message() as message:
                part = message.part()
                told = [_without_bytes(token) for token in message.logprobs]
                yield self._within(message, "output_text.done", content_index=0, text=part["text"], logprobs=told)
                yield self._within(message, "content_part.done", content_index=0, part=part)
            case _Call() as call:
                arguments = "".join(call.fragments)
                yield self._within(call, "function_call_arguments.done", arguments=arguments)
            case None:
                return
        item = self._open.item(status)
        yield self._item("output_item.done", item)
        self.items.append(item)
        self._open = None

    def _id(self, prefix: str) -> str:
        return f"{prefix}_{self._key}_{len(self.items)}"

    def _item(self, type: str, item: OutputItem) -> Event:
        return {"type": f"response.{type}", "output_index": len(self.items), "item": item}

    def _within(self, item: _Message | _Call, type: str, **fields: object) -> Event:
        return {"type": f"response.{type}", "output_index": len(self.items), "item_id": item.id, **fields}


def _without_bytes(token: ChatTokenLogprob) -> TextToken:
    tops: list[TopToken] = [{"token": top["token"], "logprob": top["logprob"]} for top in token["top_logprobs"]]
    return {"token": token["token"], "logprob": token["logprob"], "top_logprobs": tops}
