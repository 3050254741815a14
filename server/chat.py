"""/v1/chat/completions: a conversation through the checkpoint's template; the answer as the assistant's message.

/apply-template shows what the template makes of it.
"""

import asyncio
from collections.abc import Sequence
from typing import Literal, NotRequired

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from typing_extensions import TypedDict

from engine.api import FinishReason, Ready
from server.admission import Task, admit, check_count, read
from server.choices import Delta
from server.errors import InvalidRequest
from server.health import require_ready
from server.job import Job, Usage
from server.logprobs import ChatLogprobs, chat_logprobs
from server.protocol import ChatRequest
from server.respond import respond
from server.sampling import output_limit, sampling_params
from server.service import Service
from server.text import Tokenizer
from server.wire import encode_json


class RenderedPrompt(TypedDict):
    prompt: str


class AssistantMessage(TypedDict):
    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(TypedDict):
    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None


class ChatCompletion(TypedDict):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class MessageDelta(TypedDict, total=False):
    role: Literal["assistant"]
    content: str


class ChunkChoice(TypedDict):
    index: int
    delta: MessageDelta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None


class ChatChunk(TypedDict):
    """usage is absent unless the client asked for it, and null until the last chunk."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: NotRequired[Usage | None]


def router(service: Service) -> APIRouter:
    routes = APIRouter()

    @routes.post("/v1/chat/completions")
    async def create_chat_completion(http: HttpRequest) -> Response:
        request = await read(service, http, ChatRequest)
        ready = require_ready(service.client)
        check_count(service, ready, 1, request)
        task = await asyncio.to_thread(_task, service.tokenizer, request, ready)
        job = admit(service, http, request, [task], "chatcmpl")
        return await respond(http, job, ChatShape(job, request, service.tokenizer), request.stream is True)

    @routes.post("/apply-template")
    async def apply_template(http: HttpRequest) -> Response:
        """The body of a chat request; the answer is what the model would be given."""
        request = await read(service, http, ChatRequest)
        prompt: RenderedPrompt = {"prompt": await asyncio.to_thread(_rendered, service.tokenizer, request)}
        return Response(encode_json(prompt), media_type="application/json")

    return routes


def _rendered(tokenizer: Tokenizer, request: ChatRequest) -> str:
    if tokenizer.template is None:
        message = "The model has no chat template; use /v1/completions, or add chat_template.jinja to the checkpoint."
        raise InvalidRequest(message, "messages")
    return tokenizer.template.render([message.turn() for message in request.messages])


def _task(tokenizer: Tokenizer, request: ChatRequest, ready: Ready) -> Task:
    """Runs in a thread: rendering and encoding a long conversation take longer than the event loop may wait."""
    prompt = tokenizer.encode(_rendered(tokenizer, request), add_special_tokens=False)  # the template brings its BOS
    if not prompt:
        raise InvalidRequest("'messages' render to an empty prompt.", "messages")
    wanted = request.max_tokens if request.max_completion_tokens is None else request.max_completion_tokens
    limit = output_limit(len(prompt), wanted, ready.max_model_len, "messages")
    logprobs = (request.top_logprobs or 0) if request.logprobs else None
    return Task(prompt, sampling_params(request, ready, limit, logprobs))


class ChatShape:
    """Implements respond.Shape. The first chunk of a choice names the role; no other does."""

    def __init__(self, job: Job, request: ChatRequest, tokenizer: Tokenizer) -> None:
        self._job = job
        self._request = request
        self._tokenizer = tokenizer
        self._begun: set[int] = set()  # indexes of choices whose role was sent

    def chunks(self, delta: Delta) -> list[ChatChunk]:
        chunks = []
        if delta.index not in self._begun:
            self._begun.add(delta.index)
            chunks.append(self._chunk(delta.index, {"role": "assistant", "content": ""}))
        content: MessageDelta = {"content": delta.text} if delta.text else {}
        chunks.append(self._chunk(delta.index, content, self._logprobs(delta), delta.finish_reason))
        return chunks

    def usage_chunk(self, usage: Usage) -> ChatChunk | None:
        return {**self._frame([]), "usage": usage} if self._request.includes_usage else None

    def whole(self, choices: Sequence[Delta], usage: Usage) -> ChatCompletion:
        return {
            "id": self._job.id,
            "object": "chat.completion",
            "created": self._job.created,
            "model": self._request.model,
            "choices": [self._choice(choice) for choice in choices],
            "usage": usage,
        }

    def _choice(self, choice: Delta) -> ChatChoice:
        return {
            "index": choice.index,
            "message": {"role": "assistant", "content": choice.text, "refusal": None},
            "logprobs": self._logprobs(choice),
            "finish_reason": choice.finish_reason,
        }

    def _chunk(
        self, index: int, delta: MessageDelta, logprobs: ChatLogprobs | None = None, reason: FinishReason | None = None
    ) -> ChatChunk:
        chunk = self._frame([{"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}])
        if self._request.includes_usage:
            chunk["usage"] = None
        return chunk

    def _frame(self, choices: list[ChunkChoice]) -> ChatChunk:
        return {
            "id": self._job.id,
            "object": "chat.completion.chunk",
            "created": self._job.created,
            "model": self._request.model,
            "choices": choices,
        }

    def _logprobs(self, delta: Delta) -> ChatLogprobs | None:
        return chat_logprobs(self._tokenizer, delta.logprobs) if self._request.logprobs else None
