"""Serves /v1/messages, Anthropic's API, by translating it to and from chat requests, and /v1/messages/count_tokens."""

import asyncio

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from typing_extensions import TypedDict

from octavo.server.anthropic.answer import AnthropicMessage, MessageEvent, MessageWriter
from octavo.server.anthropic.request import NAMES, CountRequest, MessagesChat, MessagesRequest
from octavo.server.conversation.begin import begin, rendered
from octavo.server.conversation.request import ChatRequest
from octavo.server.conversation.translation import naming, translated
from octavo.server.generation.admission import read_body
from octavo.server.generation.respond import respond
from octavo.server.generation.service import Service
from octavo.server.http.errors import AnthropicBody
from octavo.server.http.operations import GENERATING, READING, Operation
from octavo.server.http.wire import encode_json


class TokenCount(TypedDict):
    input_tokens: int


CONVERSATION = {"messages": [{"role": "user", "content": "What is an octavo?"}]}
EXAMPLE = {"max_tokens": 64} | CONVERSATION
MESSAGES = Operation(
    "Generation", AnthropicMessage, MessagesRequest, MessageEvent, GENERATING, EXAMPLE, named=True, error=AnthropicBody
)
COUNT = Operation("Text", TokenCount, CountRequest, failures=READING, example=CONVERSATION, error=AnthropicBody)


def router(service: Service) -> APIRouter:
    routes = APIRouter()

    @routes.post("/v1/messages", openapi_extra=MESSAGES.extra())
    async def create_message(http: HttpRequest) -> Response:
        """Answers a conversation with the model's next message, in the form of Anthropic's API."""
        request = await read_body(service, http, MessagesRequest)
        chat = translated(service, request.chat(), NAMES, MessagesChat)
        with naming(NAMES):
            job, parser = await begin(service, http, chat, "msg_")
        return await respond(http, job, MessageWriter(job, chat, parser), request.stream is True)

    @routes.post("/v1/messages/count_tokens", openapi_extra=COUNT.extra())
    async def count_message_tokens(http: HttpRequest) -> Response:
        """Counts the tokens of a conversation's prompt."""
        request = await read_body(service, http, CountRequest)
        chat = translated(service, request.chat(), NAMES)
        with naming(NAMES):
            count: TokenCount = {"input_tokens": await asyncio.to_thread(_count, service, chat)}
        return Response(encode_json(count), media_type="application/json")

    return routes


def _count(service: Service, chat: ChatRequest) -> int:
    """Runs in a thread, because it takes longer for longer texts."""
    return len(service.tokenizer.encode_rendered(rendered(service, chat), chat.add_special_tokens is True))
