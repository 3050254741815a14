"""Makes the output of /v1/responses: items, and the events that tell how they grow part by part."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from typing_extensions import TypedDict

from octavo.server.conversation.items import Change, Closed, Extended, ItemAssembler, Opened
from octavo.server.conversation.parts import ParsedDelta, Reasoning, Text, ToolCall, ToolCallArguments
from octavo.server.openai.logprobs import ChatTokenLogprob, chat_logprobs
from octavo.server.text.tokenizer import Tokenizer

ItemStatus = Literal["in_progress", "completed", "incomplete"]
Event = Mapping[str, object]  # described by responses_answer.ResponseEvent


class OutputText(TypedDict):
    type: Literal["output_text"]
    text: str
    annotations: list[str]  # always empty
    logprobs: list[ChatTokenLogprob]


class OutputMessage(TypedDict):
    type: Literal["message"]
    id: str
    role: Literal["assistant"]
    status: ItemStatus
    content: list[OutputText]


class ReasoningText(TypedDict):
    type: Literal["reasoning_text"]
    text: str


class ReasoningItem(TypedDict):
    type: Literal["reasoning"]
    id: str
    summary: list[str]  # always empty: all of the reasoning is told
    content: list[ReasoningText]
    status: ItemStatus


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
    """Is a token in an event. It has no bytes, unlike the tokens of a whole text."""

    top_logprobs: list[TopToken]


OutputItem = OutputMessage | ReasoningItem | FunctionCallItem


class OutputItems:
    """Turns the items of an answer into output items, and their changes into events.

    reasoning       item.added part.added reasoning_text.delta
    text "It is"    reasoning_text.done part.done item.done, item.added part.added text.delta
    text " 5."      text.delta
    a call begins   text.done part.done item.done, item.added
    its arguments   arguments.delta ...
    the end         arguments.done item.done
    """

    def __init__(self, key: str, tokenizer: Tokenizer | None) -> None:
        """`key` is part of the items' ids. `tokenizer` is None when no log-probabilities were asked for."""
        self.items: list[OutputItem] = []  # whole items
        self._key = key
        self._tokenizer = tokenizer
        self._items = ItemAssembler()
        self._logprobs: list[ChatTokenLogprob] = []  # the open message's

    def feed(self, parsed: ParsedDelta) -> Iterator[Event]:
        """Yields the events of a delta. Its log-probabilities go with the first text in it."""
        logprobs = chat_logprobs(self._tokenizer, parsed.logprobs)["content"] if self._tokenizer is not None else []
        for part in parsed.parts:
            for change in self._items.feed(part):
                yield from self._events(change, logprobs, "completed")
            if isinstance(part, Text):
                logprobs = []

    def end(self, status: ItemStatus, of_call: ItemStatus | None = None) -> Iterator[Event]:
        """Yields the events after the last delta. An answer of nothing is an empty message.

        The open item gets the status; if it is a call, it gets `of_call` unless that is None.
        """
        begun = () if self._items.opened else self._items.open(Text(""))
        for change in (*begun, *self._items.close()):
            is_call = isinstance(change, Closed) and isinstance(change.item, ToolCall)
            yield from self._events(change, (), of_call or status if is_call else status)

    def _events(self, change: Change, logprobs: Sequence[ChatTokenLogprob], status: ItemStatus) -> Iterator[Event]:
        """`logprobs` belong to the text that the change adds; `status` is that of an item that it closes."""
        match change:
            case Opened(index, Text()):
                self._logprobs = []
                yield _item("added", index, self._message(index, "in_progress", []))
                yield self._within_text(index, "content_part.added", part=self._part(""))
            case Opened(index, Reasoning()):
                yield _item("added", index, self._reasoning(index, "in_progress", []))
                yield self._within_reasoning(index, "content_part.added", part=_thought(""))
            case Opened(index, ToolCall() as call):
                yield _item("added", index, self._call(index, "in_progress", call))
            case Extended(index, Text(text)):
                self._logprobs.extend(logprobs)
                told = [_without_bytes(token) for token in logprobs]
                yield self._within_text(index, "output_text.delta", delta=text, logprobs=told)
            case Extended(index, Reasoning(text)):
                yield self._within_reasoning(index, "reasoning_text.delta", delta=text)
            case Extended(index, ToolCallArguments(_, fragment)):
                yield self._within_call(index, "function_call_arguments.delta", delta=fragment)
            case Closed(index, Text(text)):
                part, told = self._part(text), [_without_bytes(token) for token in self._logprobs]
                yield self._within_text(index, "output_text.done", text=text, logprobs=told)
                yield self._within_text(index, "content_part.done", part=part)
                yield self._done(index, self._message(index, status, [part]))
            case Closed(index, Reasoning(text)):
                yield self._within_reasoning(index, "reasoning_text.done", text=text)
                yield self._within_reasoning(index, "content_part.done", part=_thought(text))
                yield self._done(index, self._reasoning(index, status, [_thought(text)]))
            case Closed(index, ToolCall() as call):
                yield self._within_call(index, "function_call_arguments.done", arguments=call.arguments)
                yield self._done(index, self._call(index, status, call))

    def _done(self, index: int, item: OutputItem) -> Event:
        self.items.append(item)
        return _item("done", index, item)

    def _part(self, text: str) -> OutputText:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": [*self._logprobs]}

    def _message(self, index: int, status: ItemStatus, content: list[OutputText]) -> OutputMessage:
        """Returns the message. Its one part is in its content once it is whole; before, the part has its own events."""
        return {
            "type": "message",
            "id": self._id("msg", index),
            "role": "assistant",
            "status": status,
            "content": content,
        }

    def _reasoning(self, index: int, status: ItemStatus, content: list[ReasoningText]) -> ReasoningItem:
        """Returns the reasoning. Its one part is in its content once it is whole, as that of a message."""
        return {"type": "reasoning", "id": self._id("rs", index), "summary": [], "content": content, "status": status}

    def _call(self, index: int, status: ItemStatus, call: ToolCall) -> FunctionCallItem:
        return {
            "type": "function_call",
            "id": self._id("fc", index),
            "call_id": call.id,
            "name": call.name,
            "arguments": call.arguments,
            "status": status,
        }

    def _id(self, prefix: str, index: int) -> str:
        return f"{prefix}_{self._key}_{index}"

    def _within_text(self, index: int, type: str, **fields: object) -> Event:
        place = {"output_index": index, "item_id": self._id("msg", index), "content_index": 0}
        return {"type": f"response.{type}", **place, **fields}

    def _within_reasoning(self, index: int, type: str, **fields: object) -> Event:
        place = {"output_index": index, "item_id": self._id("rs", index), "content_index": 0}
        return {"type": f"response.{type}", **place, **fields}

    def _within_call(self, index: int, type: str, **fields: object) -> Event:
        return {"type": f"response.{type}", "output_index": index, "item_id": self._id("fc", index), **fields}


def _thought(text: str) -> ReasoningText:
    return {"type": "reasoning_text", "text": text}


def _item(change: Literal["added", "done"], index: int, item: OutputItem) -> Event:
    return {"type": f"response.output_item.{change}", "output_index": index, "item": item}


def _without_bytes(token: ChatTokenLogprob) -> TextToken:
    tops: list[TopToken] = [{"token": top["token"], "logprob": top["logprob"]} for top in token["top_logprobs"]]
    return {"token": token["token"], "logprob": token["logprob"], "top_logprobs": tops}
