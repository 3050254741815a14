"""Writes the answer of /v1/chat/completions: its objects, and the writer that makes them from deltas."""

from collections.abc import Sequence
from typing import Literal, NotRequired

from typing_extensions import TypedDict

from octavo.server.conversation.parts import (
    AnswerParser,
    Ended,
    ParsedDelta,
    Part,
    Text,
    ToolCallArguments,
    ToolCallStart,
)
from octavo.server.conversation.request import ChatRequest
from octavo.server.generation.choices import Delta
from octavo.server.generation.job import Job, Usage
from octavo.server.generation.respond import ChunkWriter
from octavo.server.openai.logprobs import ChatLogprobs, PromptLogprobs, chat_logprobs, prompt_logprobs
from octavo.server.text.tokenizer import Tokenizer


class Function(TypedDict):
    name: str
    arguments: str


class FunctionCall(TypedDict):
    id: str
    type: Literal["function"]
    function: Function


class AssistantMessage(TypedDict):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: NotRequired[list[FunctionCall]]


class ChatChoice(TypedDict):
    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: Ended | None
    cut_short: NotRequired[str]  # why the choice ends early; an extension


class ChatCompletion(TypedDict):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    prompt_logprobs: NotRequired[PromptLogprobs]


class FunctionDelta(TypedDict):
    name: NotRequired[str]
    arguments: str


class FunctionCallDelta(TypedDict):
    """Adds to a call. Its id, type and name come with its first delta only; the index comes with each."""

    index: int
    id: NotRequired[str]
    type: NotRequired[Literal["function"]]
    function: FunctionDelta


class MessageDelta(TypedDict, total=False):
    role: Literal["assistant"]
    content: str
    tool_calls: list[FunctionCallDelta]


class ChunkChoice(TypedDict):
    index: int
    delta: MessageDelta
    logprobs: ChatLogprobs | None
    finish_reason: Ended | None
    cut_short: NotRequired[str]  # as in a whole answer


class ChatChunk(TypedDict):
    """Is one chunk of a stream. usage is absent unless the client asked for it, and null until the last chunk."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: NotRequired[Usage | None]


class ChatWriter(ChunkWriter):
    """Implements respond.AnswerWriter.

    The first chunks name the role of each choice. The last one of a choice has its finish reason, and nothing else.
    """

    def __init__(self, job: Job, request: ChatRequest, tokenizer: Tokenizer, parser: AnswerParser) -> None:
        self._job = job
        self._request = request
        self._tokenizer = tokenizer
        self._parser = parser
        self._begun = False  # whether the roles were sent

    def chunks(self, delta: Delta) -> list[ChatChunk]:
        """Returns a chunk for each part; log-probabilities go with the first of them."""
        parsed = self._parser.feed(delta)
        if parsed is None:
            return []
        usage = self._job.usage()
        deltas: list[MessageDelta] = [_delta(part) for part in parsed.parts]
        logprobs = self._logprobs(parsed)
        if not deltas and logprobs is not None and logprobs["content"]:  # those of a token without text
            deltas = [{"content": ""}]
        choices = [_choice(parsed.index, delta) for delta in deltas]
        if choices:
            choices[0]["logprobs"] = logprobs
        if parsed.finish_reason is not None:
            choices.append(_choice(parsed.index, {}, parsed.finish_reason))
            if (cut := self._job.choices[parsed.index].cut) is not None:
                choices[-1]["cut_short"] = cut
        return [*self._roles(usage), *(self._chunk(choice, usage) for choice in choices)]

    def _roles(self, usage: Usage) -> list[ChatChunk]:
        """Returns the chunks that name the roles, once; they count no tokens of the answer."""
        if self._begun:
            return []
        self._begun = True
        before: Usage = {**usage, "completion_tokens": 0, "total_tokens": usage["prompt_tokens"]}
        indexes = range(len(self._job.choices))
        return [self._chunk(_choice(index, {"role": "assistant", "content": ""}), before) for index in indexes]

    def usage_chunk(self, usage: Usage) -> ChatChunk | None:
        return {**self._frame([]), "usage": usage} if self._request.includes_usage else None

    def whole(self, choices: Sequence[Delta], usage: Usage) -> ChatCompletion:
        completion: ChatCompletion = {
            "id": self._job.id,
            "object": "chat.completion",
            "created": self._job.created,
            "model": self._request.model,
            "choices": [self._whole_choice(parsed) for choice in choices if (parsed := self._parser.feed(choice))],
            "usage": usage,
        }
        if (count := self._request.prompt_logprobs) is not None:
            first = self._job.choices[0]
            entries = first.prompt_logprobs
            completion["prompt_logprobs"] = prompt_logprobs(self._tokenizer, first.request.prompt, entries, count)
        return completion

    def _whole_choice(self, parsed: ParsedDelta) -> ChatChoice:
        choice: ChatChoice = {
            "index": parsed.index,
            "message": _message(parsed),
            "logprobs": self._logprobs(parsed),
            "finish_reason": parsed.finish_reason,
        }
        if (cut := self._job.choices[parsed.index].cut) is not None:
            choice["cut_short"] = cut
        return choice

    def _chunk(self, choice: ChunkChoice, usage: Usage) -> ChatChunk:
        chunk = self._frame([choice])
        if self._request.counts_usage or self._request.includes_usage:
            chunk["usage"] = usage if self._request.counts_usage else None
        return chunk

    def _frame(self, choices: list[ChunkChoice]) -> ChatChunk:
        return {
            "id": self._job.id,
            "object": "chat.completion.chunk",
            "created": self._job.created,
            "model": self._request.model,
            "choices": choices,
        }

    def _logprobs(self, parsed: ParsedDelta) -> ChatLogprobs | None:
        return chat_logprobs(self._tokenizer, parsed.logprobs) if self._request.logprobs else None


def _choice(index: int, delta: MessageDelta, finish_reason: Ended | None = None) -> ChunkChoice:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}


def _delta(part: Part) -> MessageDelta:
    match part:
        case Text(text):
            return {"content": text}
        case ToolCallStart(index, id, name):
            start: FunctionCallDelta = {
                "index": index,
                "id": id,
                "type": "function",
                "function": {"name": name, "arguments": ""},
            }
            return {"tool_calls": [start]}
        case ToolCallArguments(index, fragment):
            return {"tool_calls": [{"index": index, "function": {"arguments": fragment}}]}


def _message(parsed: ParsedDelta) -> AssistantMessage:
    """Returns the message; its content is null if there are only calls."""
    message: AssistantMessage = {"role": "assistant", "content": parsed.text, "refusal": None}
    if calls := parsed.tool_calls:
        message["content"] = parsed.text or None
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in calls
        ]
    return message
