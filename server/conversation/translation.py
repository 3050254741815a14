"""Translates bodies of other APIs into chat requests, and the fields in complaints back."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

from pydantic import BaseModel

from octavo.server.conversation.request import ChatRequest
from octavo.server.generation.request import ModelRequest, checked
from octavo.server.generation.texts import Texts
from octavo.server.http.errors import ApiError

Names = Mapping[str, str]  # a chat request's field -> the field of the body that it was made from


class TranslatedRequest(ModelRequest):
    """Is a body that becomes a chat request. Fields that it does not declare are passed on, and checked there."""

    model: str
    """Names a served model, as /v1/models lists it."""
    stream: bool | None = None
    """Asks for the answer as server-sent events, while it is made."""
    n: Literal[1] | None = None
    """Is always 1: an answer has no choices in this API."""

    def unknown(self) -> Mapping[str, Any]:
        return {}

    def amounting_to(self, translated: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the body of a chat request: undeclared fields as they came, and translated ones that are not null."""
        given = {name: value for name, value in translated.items() if value is not None}
        return {**(self.model_extra or {}), "model": self.model, "stream": self.stream, **given}


def translated(
    texts: Texts, payload: Mapping[str, Any], names: Names, model: type[ChatRequest] = ChatRequest
) -> ChatRequest:
    """Returns the chat request. Raises InvalidRequest. Null values in the payload count as absent."""
    with naming(names):
        return checked(lambda: model.model_validate(payload), texts.check_extra)


@contextmanager
def naming(names: Names) -> Iterator[None]:
    """Makes errors raised within name the body's fields: a part of a chat request's field becomes the whole field."""
    try:
        yield
    except ApiError as error:
        raise error.renamed(lambda field: names.get(field.partition(".")[0], field)) from error


def declared(part: BaseModel) -> dict[str, Any]:
    """Returns the fields that the class declares and the client gave."""
    return part.model_dump(include=set(type(part).model_fields), exclude_none=True, by_alias=True)
