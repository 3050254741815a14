"""Serves /tokenize and /detokenize: the token ids of a text or a conversation, and the text of token ids."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from typing_extensions import TypedDict

from octavo.server.conversation.begin import rendered
from octavo.server.conversation.translation import translated
from octavo.server.generation.admission import check_token_ids, parsed, read
from octavo.server.generation.counting import check_countable, context_of
from octavo.server.generation.request import ModelRequest, TokenIds
from octavo.server.generation.service import Service
from octavo.server.generation.texts import Texts
from octavo.server.http.errors import FieldName, InvalidRequest, ServiceUnavailable
from octavo.server.http.operations import READING, Operation
from octavo.server.http.streaming import Sliced
from octavo.server.http.wire import encode_json
from octavo.server.text.tokenizer import Tokenizer

MAX_IDS = 128 * 1024  # that one request turns into text


class TokenizeRequest(ModelRequest):
    """Holds a prompt or a conversation. With a conversation, other fields are those of a chat request."""

    prompt: str | None = None
    """Gives a text. Either it or messages is required."""
    messages: list[Any] | None = None
    """Gives a conversation; every other field of a chat request is allowed with it."""
    add_special_tokens: bool | None = None
    """Adds the tokens that begin a text, usually a BOS. The default is true for a prompt, and false for messages.

    To messages the chat template usually adds them. What it has written is not added again.
    """
    return_token_strs: bool | None = None
    """Asks for each token as the vocabulary spells it, too."""

    def check(self) -> None:
        super().check()
        if (self.prompt is None) == (self.messages is None):
            raise InvalidRequest(
                "Either {param} or {messages} is required, and not both.", "prompt", messages=FieldName("messages")
            )

    def unknown(self) -> Mapping[str, Any]:
        return super().unknown() if self.messages is None else {}  # the chat request judges what it is given

    def chat(self, model: str) -> dict[str, Any]:
        """Returns the body of the chat request whose prompt is asked for."""
        return {**super().unknown(), "model": model, "messages": self.messages}


class DetokenizeRequest(ModelRequest):
    tokens: Annotated[TokenIds, Field(max_length=MAX_IDS)]
    """Gives at most 131,072 token ids, each at least 0 and below the vocabulary's size."""


class Tokens(TypedDict):
    """Holds token ids in the form that vLLM returns."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None  # each token in the vocabulary's spelling


class Text(TypedDict):
    prompt: str


TOKENIZE = Operation("Text", Tokens, TokenizeRequest, None, (*READING, ServiceUnavailable), {"prompt": "An octavo"})
DETOKENIZE = Operation("Text", Text, DetokenizeRequest, failures=READING, example={"tokens": [1, 2, 3]})


def router(service: Service) -> APIRouter:
    routes = APIRouter()

    @routes.post("/tokenize", openapi_extra=TOKENIZE.extra())
    async def tokenize(http: HttpRequest) -> Response:
        """Returns the token ids of a text or a conversation, as the model is given them.

        The body is {model, prompt} or that of a chat request, with add_special_tokens and return_token_strs.
        """
        return Sliced(await read(service, http, _tokens, context_of(service.client)))

    @routes.post("/detokenize", openapi_extra=DETOKENIZE.extra())
    async def detokenize(http: HttpRequest) -> Response:
        """Returns the text of token ids, with that of special tokens."""
        return Sliced(await read(service, http, _text))

    return routes


def _tokens(texts: Texts, body: bytes, max_model_len: int) -> bytes:
    request = parsed(texts, body, TokenizeRequest)
    ids = _encoded(texts, request, max_model_len)
    tokens: Tokens = {
        "count": len(ids),
        "max_model_len": max_model_len,
        "tokens": list(ids),
        "token_strs": _spelled(texts.tokenizer, ids) if request.return_token_strs else None,
    }
    return encode_json(tokens)


def _encoded(texts: Texts, request: TokenizeRequest, max_model_len: int) -> tuple[int, ...]:
    if request.prompt is not None:
        check_countable(request.prompt, max_model_len, "prompt")
        return texts.tokenizer.encode(request.prompt, request.add_special_tokens is not False)
    chat = translated(texts, request.chat(request.model or texts.config.served_model_name), {})
    text = rendered(texts, chat)
    check_countable(text, max_model_len, "messages")
    return texts.tokenizer.encode_rendered(text, request.add_special_tokens is True)


def _text(texts: Texts, body: bytes) -> bytes:
    ids = parsed(texts, body, DetokenizeRequest).tokens
    check_token_ids(texts.tokenizer, ids, "tokens")
    text: Text = {"prompt": texts.tokenizer.backend.decode(ids, skip_special_tokens=False)}
    return encode_json(text)


def _spelled(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    return [tokenizer.backend.id_to_token(id) or "" for id in ids]
