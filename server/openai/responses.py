"""Serves /v1/responses, OpenAI's newer API, without its memory, by translating it to and from chat requests."""

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from octavo.engine.api import Ready
from octavo.server.conversation.begin import Conversation, begin, prepared
from octavo.server.conversation.translation import naming, translated
from octavo.server.generation.admission import parsed, read_prompt
from octavo.server.generation.respond import respond
from octavo.server.generation.service import Service
from octavo.server.generation.texts import Texts
from octavo.server.http.operations import GENERATING, Operation
from octavo.server.openai.responses_answer import ResponseEvent, ResponseObject, ResponseWriter
from octavo.server.openai.responses_request import NAMES, ResponsesRequest

EXAMPLE = {"input": "What is an octavo?"}
RESPONSES = Operation("Generation", ResponseObject, ResponsesRequest, ResponseEvent, GENERATING, EXAMPLE, named=True)


def router(service: Service) -> APIRouter:
    routes = APIRouter()

    @routes.post("/v1/responses", openapi_extra=RESPONSES.extra())
    async def create_response(http: HttpRequest) -> Response:
        """Answers an input in the form of OpenAI's Responses API. Nothing is kept between requests."""
        request, conversation = await read_prompt(service, http, _prepared)
        with naming(NAMES):
            job, parser = await begin(service, http, conversation, "resp_")
        writer = ResponseWriter(job, request, service.tokenizer, parser)
        return await respond(http, job, writer, request.stream is True)

    return routes


def _prepared(texts: Texts, body: bytes, ready: Ready) -> tuple[ResponsesRequest, Conversation]:
    """Returns the request without its input, which is in the prompt of the conversation."""
    request = parsed(texts, body, ResponsesRequest)
    chat = translated(texts, request.chat(), NAMES)
    with naming(NAMES):
        return request.model_copy(update={"input": []}), prepared(texts, chat, ready)
