"""Writes the answer of /v1/chat/completions: its objects, and the writer that makes them from deltas."""

from collections.abc import Sequence
from typing import Literal, NotRequired

from typing_extensions import TypedDict

from octavo.server.conversation.parts import (
    AnswerParser,
    Ended,
    ParsedDelta,
    Part,
    Reasoning,
    Text,
    ToolCallArguments,
    ToolCallStart,
)
from octavo.server.conversation.request import ChatRequest
from octavo.server.generation.choices import Delta, joined
from octavo.server.generation.job import Job, Usage
from octavo.server.generation.respond import ChunkWriter
from octavo.server.openai.logprobs import ChatLogprobs, PromptLogprobs, chat_logprobs, prompt_logprobs
from octavo.server.openai.routed_experts import SglExt, StreamedRoutes, asks_for_routes, routed_fields, sglext
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
    reasoning_content: NotRequired[str]  # what the model wrote for itself first; an extension, as in DeepSeek's API
    refusal: None
    tool_calls: NotRequired[list[FunctionCall]]


class ChatChoice(TypedDict):
    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: Ended | None
    cut_short: NotRequired[str]  # why the choice ends early; an extension
    routed_experts: NotRequired[str]  # as RoutedFields says
    routed_experts_weights: NotRequired[str]


class CompletionTokensDetails(TypedDict):
    reasoning_tokens: int


class ChatUsage(Usage):
    completion_tokens_details: CompletionTokensDetails


class ChatCompletion(TypedDict):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: ChatUsage
    prompt_logprobs: NotRequired[PromptLogprobs]
    sglext: NotRequired[SglExt]


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
    reasoning_content: str
    tool_calls: list[FunctionCallDelta]


class ChunkChoice(TypedDict):
    index: int
    delta: MessageDelta
    logprobs: ChatLogprobs | None
    finish_reason: Ended | None
    cut_short: NotRequired[str]  # as in a whole answer
    routed_experts: NotRequired[str]  # those of new positions
    routed_experts_weights: NotRequired[str]


class ChatChunk(TypedDict):
    """Is one chunk of a stream. usage is absent unless the client asked for it, and null until the last chunk."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: NotRequired[ChatUsage | None]
    sglext: NotRequired[SglExt]


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
        self._routed = asks_for_routes(job)
        self._routes = StreamedRoutes(self._routed)

    def chunks(self, delta: Delta) -> list[ChatChunk]:
        """Returns a chunk for each part; log-probabilities go with the first of them."""
        parsed = self._parser.feed(delta)
        self._routes.feed(delta)
        if parsed is None:
            return []
        usage = self._detailed(self._job.usage())
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
        if choices:
            choices[0] = {**choices[0], **self._routes.take(parsed.index)}
        return [*self._roles(usage), *(self._chunk(choice, usage) for choice in choices)]

    def _roles(self, usage: ChatUsage) -> list[ChatChunk]:
        """Returns the chunks that name the roles, once; they count no tokens of the answer."""
        if self._begun:
            return []
        self._begun = True
        before: ChatUsage = {
            **usage,
            "completion_tokens": 0,
            "total_tokens": usage["prompt_tokens"],
            "completion_tokens_details": {"reasoning_tokens": 0},
        }
        indexes = range(len(self._job.choices))
        return [self._chunk(_choice(index, {"role": "assistant", "content": ""}), before) for index in indexes]

    def routes_chunk(self) -> ChatChunk | None:
        chunk: ChatChunk = {**self._frame([]), **self._routes.closing()}
        return self._counted(chunk, self._detailed(self._job.usage())) if self._routed else None

    def usage_chunk(self, usage: Usage) -> ChatChunk | None:
        return {**self._frame([]), "usage": self._detailed(usage)} if self._request.includes_usage else None

    def whole(self, choices: Sequence[Sequence[Delta]], usage: Usage) -> ChatCompletion:
        parsed_ones = [parsed for deltas in choices if (parsed := self._parser.whole(deltas))]
        answers = [self._whole_choice(parsed) for parsed in parsed_ones]
        completion: ChatCompletion = {
            "id": self._job.id,
            "object": "chat.completion",
            "created": self._job.created,
            "model": self._request.model,
            "choices": answers,
            "usage": self._detailed(usage),
        }
        if (count := self._request.prompt_logprobs) is not None:
            first = self._job.choices[0]
            entries = first.prompt_logprobs
            completion["prompt_logprobs"] = prompt_logprobs(self._tokenizer, first.request.prompt, entries, count)
        if self._routed:
            routes = [joined(deltas).routes for deltas in choices]
            completion["choices"] = [{**answer, **routed_fields(routes[answer["index"]])} for answer in answers]
            completion["sglext"] = sglext(routes[0])
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

    def _chunk(self, choice: ChunkChoice, usage: ChatUsage) -> ChatChunk:
        return self._counted(self._frame([choice]), usage)

    def _counted(self, chunk: ChatChunk, usage: ChatUsage) -> ChatChunk:
        """Returns the chunk with the usage so far if the client wants it; with null if it wants it at the end."""
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

    def _detailed(self, usage: Usage) -> ChatUsage:
        """Returns the usage with the number of tokens that were reasoning."""
        return {**usage, "completion_tokens_details": {"reasoning_tokens": self._parser.reasoning_tokens}}

    def _logprobs(self, parsed: ParsedDelta) -> ChatLogprobs | None:
        return chat_logprobs(self._tokenizer, parsed.logprobs) if self._request.logprobs else None


def _choice(index: int, delta: MessageDelta, finish_reason: Ended | None = None) -> ChunkChoice:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}


def _delta(part: Part) -> MessageDelta:
    match part:
        case Text(text):
            return {"content": text}
        case Reasoning(text):
            return {"reasoning_content": text}
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
    if reasoning := parsed.reasoning:
        message["reasoning_content"] = reasoning
    if calls := parsed.tool_calls:
        message["content"] = parsed.text or None
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in calls
        ]
    return message
