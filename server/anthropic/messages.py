"""Serves /v1/messages, Anthropic's API, by translating it to and from chat requests, and /v1/messages/count_tokens."""

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from typing_extensions import TypedDict

from octavo.engine.api import Ready
from octavo.server.anthropic.answer import AnthropicMessage, MessageEvent, MessageWriter
from octavo.server.anthropic.request import NAMES, CountRequest, MessagesChat, MessagesRequest
from octavo.server.conversation.begin import Conversation, begin, prepared, rendered
from octavo.server.conversation.translation import naming, translated
from octavo.server.generation.admission import parsed, read, read_prompt
from octavo.server.generation.counting import check_countable, context_of
from octavo.server.generation.respond import respond
from octavo.server.generation.service import Service
from octavo.server.generation.texts import Texts
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
        conversation = await read_prompt(service, http, _prepared)
        request = conversation.request
        with naming(NAMES):
            job, parser = await begin(service, http, conversation, "msg_")
        return await respond(http, job, MessageWriter(job, request, parser), request.stream is True)

    @routes.post("/v1/messages/count_tokens", openapi_extra=COUNT.extra())
    async def count_message_tokens(http: HttpRequest) -> Response:
        """Counts the tokens of a conversation's prompt."""
        count: TokenCount = {"input_tokens": await read(service, http, _count, context_of(service.client))}
        return Response(encode_json(count), media_type="application/json")

    return routes


def _prepared(texts: Texts, body: bytes, ready: Ready) -> Conversation:
    chat = translated(texts, parsed(texts, body, MessagesRequest).chat(), NAMES, MessagesChat)
    with naming(NAMES):
        return prepared(texts, chat, ready)


def _count(texts: Texts, body: bytes, max_model_len: int) -> int:
    chat = translated(texts, parsed(texts, body, CountRequest).chat(), NAMES)
    with naming(NAMES):
        text = rendered(texts, chat)
        check_countable(text, max_model_len, "messages")
        return len(texts.tokenizer.encode_rendered(text, chat.add_special_tokens is True))
