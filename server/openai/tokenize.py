"""/tokenize and /detokenize: what the model reads for a text or a conversation, and the text of token ids."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from typing_extensions import TypedDict

from octavo.server.conversation.begin import rendered
from octavo.server.conversation.translation import translated
from octavo.server.generation.admission import check_token_ids, read_body
from octavo.server.generation.request import ModelRequest, TokenIds
from octavo.server.generation.service import Service
from octavo.server.http.errors import FieldName, InvalidRequest, ServiceUnavailable
from octavo.server.http.health import require_ready
from octavo.server.http.operations import READING, Operation
from octavo.server.http.wire import encode_json
from octavo.server.text.tokenizer import Tokenizer


class TokenizeRequest(ModelRequest):
    """A prompt, or else a conversation: then fields unknown here are those of a chat request."""

    prompt: str | None = None
    """A text; or else give messages."""
    messages: list[Any] | None = None
    """A conversation, with whatever else a chat request may have."""
    add_special_tokens: bool | None = None
    """Whether to add the tokens that begin a text. Default: with a prompt, not with messages, whose template does."""
    return_token_strs: bool | None = None
    """Whether to spell each token as the vocabulary does."""

    def check(self) -> None:
        super().check()
        if (self.prompt is None) == (self.messages is None):
            raise InvalidRequest(
                "Either {param} or {messages} is required, and not both.", "prompt", messages=FieldName("messages")
            )

    def unknown(self) -> Mapping[str, Any]:
        return super().unknown() if self.messages is None else {}  # the chat request judges what it is given

    def chat(self, model: str) -> dict[str, Any]:
        """The body of the chat request whose prompt is asked for."""
        return {**super().unknown(), "model": model, "messages": self.messages}


class DetokenizeRequest(ModelRequest):
    tokens: TokenIds
    """Ids from 0 to below the vocabulary's size."""


class Tokens(TypedDict):
    """This and the requests have vLLM's shapes."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None  # as the vocabulary spells them


class Text(TypedDict):
    prompt: str


TOKENIZE = Operation("Text", Tokens, TokenizeRequest, None, (*READING, ServiceUnavailable), {"prompt": "An octavo"})
DETOKENIZE = Operation("Text", Text, DetokenizeRequest, failures=READING, example={"tokens": [1, 2, 3]})


def router(service: Service) -> APIRouter:
    routes = APIRouter()
    tokenizer = service.tokenizer

    @routes.post("/tokenize", openapi_extra=TOKENIZE.extra())
    async def tokenize(http: HttpRequest) -> Response:
        """What the model reads for a text or a conversation.

        {model, prompt} or the body of a chat request; add_special_tokens and return_token_strs with either.
        """
        request = await read_body(service, http, TokenizeRequest)
        ready = service.client.ready or require_ready(service.client)  # a restart does not change what a token is
        ids = await asyncio.to_thread(_encoded, service, request)
        tokens: Tokens = {
            "count": len(ids),
            "max_model_len": ready.max_model_len,
            "tokens": list(ids),
            "token_strs": _spelled(tokenizer, ids) if request.return_token_strs else None,
        }
        return Response(encode_json(tokens), media_type="application/json")

    @routes.post("/detokenize", openapi_extra=DETOKENIZE.extra())
    async def detokenize(http: HttpRequest) -> Response:
        """The text of token ids; special tokens are shown."""
        request = await read_body(service, http, DetokenizeRequest)
        check_token_ids(tokenizer, request.tokens, "tokens")
        text: Text = {"prompt": await asyncio.to_thread(_decoded, tokenizer, request.tokens)}
        return Response(encode_json(text), media_type="application/json")

    return routes


def _encoded(service: Service, request: TokenizeRequest) -> tuple[int, ...]:
    """Runs in a thread, as everything that takes longer with the text."""
    if request.prompt is not None:
        return service.tokenizer.encode(request.prompt, request.add_special_tokens is not False)
    chat = translated(service, request.chat(request.model or service.config.served_model_name), {})
    return service.tokenizer.encode(rendered(service, chat), request.add_special_tokens is True)


def _decoded(tokenizer: Tokenizer, ids: list[int]) -> str:
    return tokenizer.backend.decode(ids, skip_special_tokens=False)


def _spelled(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    return [tokenizer.backend.id_to_token(id) or "" for id in ids]
