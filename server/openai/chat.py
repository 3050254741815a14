"""Serves /v1/chat/completions: the assistant's next message in a conversation, which the chat template renders.

/apply-template returns the rendered prompt.
"""

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from typing_extensions import TypedDict

from octavo.engine.api import Ready
from octavo.server.conversation.begin import Conversation, begin, prepared, rendered
from octavo.server.conversation.request import ChatRequest
from octavo.server.generation.admission import parsed, read, read_prompt
from octavo.server.generation.respond import respond
from octavo.server.generation.service import Service
from octavo.server.generation.texts import Texts
from octavo.server.http.operations import GENERATING, READING, Operation
from octavo.server.http.streaming import Sliced
from octavo.server.http.wire import encode_json
from octavo.server.openai.chat_answer import ChatChunk, ChatCompletion, ChatWriter


class RenderedPrompt(TypedDict):
    prompt: str


EXAMPLE = {"messages": [{"role": "user", "content": "What is an octavo?"}], "max_tokens": 64}
CHAT = Operation("Generation", ChatCompletion, ChatRequest, ChatChunk, GENERATING, EXAMPLE)
APPLY_TEMPLATE = Operation("Text", RenderedPrompt, ChatRequest, failures=READING, example=EXAMPLE)


def router(service: Service) -> APIRouter:
    routes = APIRouter()

    @routes.post("/v1/chat/completions", openapi_extra=CHAT.extra())
    async def create_chat_completion(http: HttpRequest) -> Response:
        """Answers a conversation with the model's next message."""
        conversation = await read_prompt(service, http, _prepared)
        request = conversation.request
        job, parser = await begin(service, http, conversation, "chatcmpl-")
        return await respond(http, job, ChatWriter(job, request, service.tokenizer, parser), request.stream is True)

    @routes.post("/apply-template", openapi_extra=APPLY_TEMPLATE.extra())
    async def apply_template(http: HttpRequest) -> Response:
        """Shows the prompt that the model would be given for the body of a chat request."""
        return Sliced(await read(service, http, _applied))

    return routes


def _prepared(texts: Texts, body: bytes, ready: Ready) -> Conversation:
    return prepared(texts, parsed(texts, body, ChatRequest), ready)


def _applied(texts: Texts, body: bytes) -> bytes:
    prompt: RenderedPrompt = {"prompt": rendered(texts, parsed(texts, body, ChatRequest))}
    return encode_json(prompt)
