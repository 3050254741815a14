"""Writes the answer of /v1/messages: its object, its events, and the writer that makes them from deltas."""

from collections.abc import Sequence
from typing import Literal, NotRequired

from typing_extensions import TypedDict

from octavo.engine.api import FinishReason
from octavo.server.anthropic.content import BlockDelta, Content, ContentBlock
from octavo.server.conversation.parts import AnswerParser, Ended, ParsedDelta
from octavo.server.conversation.request import ChatRequest
from octavo.server.generation.choices import Delta
from octavo.server.generation.job import Job, Usage
from octavo.server.generation.respond import Events
from octavo.server.http.errors import AnthropicDetail, ApiError

StopReason = Literal["end_turn", "max_tokens", "model_context_window_exceeded", "stop_sequence", "tool_use"]


class OutputTokensDetails(TypedDict):
    thinking_tokens: int


class MessageUsage(TypedDict):
    """Counts the tokens of a request; input_tokens leaves out those that were in the cache."""

    input_tokens: int
    cache_creation_input_tokens: Literal[0]
    cache_read_input_tokens: int
    output_tokens: int
    output_tokens_details: OutputTokensDetails


class AnthropicMessage(TypedDict):
    """Is a whole answer; stop_sequence is the one that ended it, or null."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[ContentBlock]
    stop_reason: StopReason | None
    stop_sequence: str | None
    usage: MessageUsage


class StopDelta(TypedDict):
    stop_reason: StopReason | None
    stop_sequence: str | None


class MessageEvent(TypedDict):
    """Is one of Anthropic's events; which keys it has depends on its type."""

    type: Literal[
        "message_start",
        "content_block_start",
        "ping",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
        "error",
    ]
    message: NotRequired[AnthropicMessage]
    index: NotRequired[int]
    content_block: NotRequired[ContentBlock]
    delta: NotRequired[BlockDelta | StopDelta]
    usage: NotRequired[MessageUsage]
    error: NotRequired[AnthropicDetail]
    request_id: NotRequired[str]


class MessageWriter:
    """Implements respond.AnswerWriter: Content makes the same blocks for a stream and for a whole answer."""

    named = True

    def __init__(self, job: Job, request: ChatRequest, parser: AnswerParser) -> None:
        self._job = job
        self._request = request
        self._parser = parser
        self._content = Content()
        self._ended: Ended | None = None

    def opening(self) -> Events:
        """Returns message_start. Its usage says nothing of the cache yet; message_delta corrects it at the end."""
        return ({"type": "message_start", "message": self._message(self._job.usage())},)

    def chunks(self, delta: Delta) -> Events:
        return self._told(self._parser.feed(delta))

    def _told(self, parsed: ParsedDelta | None) -> Events:
        if parsed is None:
            return ()
        self._ended = parsed.finish_reason
        return [*self._content.feed(parsed)]

    def closing(self, usage: Usage) -> Events:
        events = [*self._content.end()]
        stop: StopDelta = {"stop_reason": self._stop_reason(), "stop_sequence": self._job.choices[0].stop_string}
        counted = _usage(usage, self._parser.reasoning_tokens)
        delta = {"type": "message_delta", "delta": stop, "usage": counted}
        return [*events, delta, {"type": "message_stop"}]

    def failed(self, error: ApiError, usage: Usage) -> Events:
        return ({**error.anthropic_body(self._job.trace.request_id)},)

    def whole(self, choices: Sequence[Sequence[Delta]], usage: Usage) -> AnthropicMessage:
        for deltas in choices:
            self._told(self._parser.whole(deltas))
        self.closing(usage)
        return self._message(usage)

    def _message(self, usage: Usage) -> AnthropicMessage:
        return {
            "id": self._job.id,
            "type": "message",
            "role": "assistant",
            "model": self._request.model,
            "content": [*self._content.blocks],
            "stop_reason": self._stop_reason(),
            "stop_sequence": self._job.choices[0].stop_string,
            "usage": _usage(usage, self._parser.reasoning_tokens),
        }

    def _stop_reason(self) -> StopReason | None:
        match self._ended:
            case None:
                return None
            case "tool_calls":
                return "tool_use"
            case FinishReason.LENGTH:
                is_cut = self._job.choices[0].request.params.max_tokens < (self._request.max_tokens or 0)
                return "model_context_window_exceeded" if is_cut else "max_tokens"
            case _:
                return "end_turn" if self._job.choices[0].stop_string is None else "stop_sequence"


def _usage(usage: Usage, thinking_tokens: int) -> MessageUsage:
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    return {
        "input_tokens": usage["prompt_tokens"] - cached,
        "cache_creation_input_tokens": 0,  # nothing is charged for
        "cache_read_input_tokens": cached,
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"thinking_tokens": thinking_tokens},
    }
