"""Writes the answer of /v1/responses: its object, its events, and the writer that makes them from deltas."""

import itertools
import time
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

from octavo.engine.api import FinishReason, Routes
from octavo.server.conversation.parts import AnswerParser, Ended, ParsedDelta
from octavo.server.conversation.translation import declared
from octavo.server.generation.choices import Delta
from octavo.server.generation.job import Job, Usage
from octavo.server.generation.respond import Events
from octavo.server.http.errors import ApiError
from octavo.server.openai.responses_output import Event, OutputItem, OutputItems, OutputText, ReasoningText, TextToken
from octavo.server.openai.responses_request import ResponsesRequest
from octavo.server.openai.routed_experts import asks_for_routes, routed_fields
from octavo.server.text.tokenizer import Tokenizer

Status = Literal["in_progress", "completed", "incomplete", "failed"]


class InputTokensDetails(TypedDict):
    cached_tokens: int
    cache_write_tokens: int


class OutputTokensDetails(TypedDict):
    reasoning_tokens: int


class ResponseUsage(TypedDict):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class ResponseError(TypedDict):
    code: Literal["server_error"]
    message: str


class IncompleteDetails(TypedDict):
    reason: Literal["max_output_tokens"]


class ResponseObject(TypedDict):
    """Is a whole answer. It repeats what was asked for, as OpenAI does. Nothing is stored."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Status
    background: Literal[False]
    error: ResponseError | None
    incomplete_details: IncompleteDetails | None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    model: str
    output: list[OutputItem]
    parallel_tool_calls: bool
    previous_response_id: None
    temperature: float
    text: dict[str, Any]
    tool_choice: Any
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float
    truncation: Literal["disabled"]
    usage: ResponseUsage | None
    routed_experts: NotRequired[str]  # as RoutedFields says; an answer has them when it is complete
    routed_experts_weights: NotRequired[str]


class ResponseEvent(TypedDict):
    """Is one of OpenAI's events; which keys it has depends on its type."""

    type: Literal[
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.reasoning_text.delta",
        "response.reasoning_text.done",
        "response.content_part.done",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_item.done",
        "response.completed",
        "response.incomplete",
        "response.failed",
    ]
    sequence_number: int  # counts the events from 0
    response: NotRequired[ResponseObject]
    output_index: NotRequired[int]
    item: NotRequired[OutputItem]
    item_id: NotRequired[str]
    content_index: NotRequired[int]
    part: NotRequired[OutputText | ReasoningText]
    delta: NotRequired[str]
    text: NotRequired[str]
    arguments: NotRequired[str]
    logprobs: NotRequired[list[TextToken]]


class ResponseWriter:
    """Implements respond.AnswerWriter: OutputItems makes the same items for a stream and for a whole answer."""

    named = True

    def __init__(self, job: Job, request: ResponsesRequest, tokenizer: Tokenizer, parser: AnswerParser) -> None:
        self._job = job
        self._request = request
        self._parser = parser
        self._output = OutputItems(job.id.removeprefix("resp_"), tokenizer if request.includes_logprobs else None)
        self._numbers = itertools.count()
        self._ended: Ended | None = None
        self._routes: list[Routes] = []

    def opening(self) -> Events:
        begun = self._response("in_progress", None)
        types = ("response.created", "response.in_progress")
        return self._numbered({"type": type, "response": begun} for type in types)

    def chunks(self, delta: Delta) -> Events:
        self._routes += delta.routes
        return self._told(self._parser.feed(delta))

    def _told(self, parsed: ParsedDelta | None) -> Events:
        if parsed is None:
            return ()
        self._ended = parsed.finish_reason
        return self._numbered(self._output.feed(parsed))

    def closing(self, usage: Usage) -> Events:
        status: Literal["incomplete", "completed"] = "incomplete" if self._is_cut else "completed"
        events = [*self._output.end(status, "completed" if self._ended == "tool_calls" else "incomplete")]
        last = {"type": f"response.{status}", "response": self._complete(status, usage)}
        return self._numbered([*events, last])

    def failed(self, error: ApiError, usage: Usage) -> Events:
        response = self._response("failed", usage)
        response["error"] = {"code": "server_error", "message": error.message}
        return self._numbered([{"type": "response.failed", "response": response}])

    def whole(self, choices: Sequence[Sequence[Delta]], usage: Usage) -> ResponseObject:
        for deltas in choices:
            self._told(self._parser.whole(deltas))
            self._routes += (routes for delta in deltas for routes in delta.routes)
        self.closing(usage)
        return self._complete("incomplete" if self._is_cut else "completed", usage)

    def _complete(self, status: Status, usage: Usage) -> ResponseObject:
        """Returns the whole answer, with the experts that served it if they were asked for."""
        response = self._response(status, usage)
        return {**response, **routed_fields(self._routes)} if asks_for_routes(self._job) else response

    @property
    def _is_cut(self) -> bool:
        return self._ended is FinishReason.LENGTH

    def _numbered(self, events: Iterable[Event]) -> Events:
        return [{**event, "sequence_number": next(self._numbers)} for event in events]

    def _response(self, status: Status, usage: Usage | None) -> ResponseObject:
        request, params = self._request, self._job.choices[0].request.params
        return {
            "id": self._job.id,
            "object": "response",
            "created_at": self._job.created,
            "completed_at": int(time.time()) if status == "completed" else None,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "metadata": request.metadata or {},
            "model": request.model,
            "output": [*self._output.items],
            "parallel_tool_calls": request.parallel_tool_calls is not False,
            "previous_response_id": None,
            "temperature": params.temperature,
            "text": _text(request),
            "tool_choice": _tool_choice(request),
            "tools": [declared(tool) for tool in request.tools or ()],
            "top_logprobs": request.top_logprobs or 0,
            "top_p": params.top_p,
            "truncation": "disabled",
            "usage": None if usage is None else _usage(usage, self._parser.reasoning_tokens),
        }


def _text(request: ResponsesRequest) -> dict[str, Any]:
    given = request.text.format if request.text is not None else None
    return {"format": {"type": "text"} if given is None else given.repeated()}


def _tool_choice(request: ResponsesRequest) -> Any:
    choice = request.tool_choice
    return choice or "auto" if choice is None or isinstance(choice, str) else declared(choice)


def _usage(usage: Usage, reasoning_tokens: int) -> ResponseUsage:
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {
            "cached_tokens": usage["prompt_tokens_details"]["cached_tokens"],
            "cache_write_tokens": 0,  # nothing is charged for
        },
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": reasoning_tokens},
        "total_tokens": usage["total_tokens"],
    }
