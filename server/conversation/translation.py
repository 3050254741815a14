"""A body of another shape: the chat request that it amounts to, whose complaints then name the body's own fields."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

from pydantic import BaseModel

from octavo.server.conversation.request import ChatRequest
from octavo.server.generation.request import ModelRequest, checked
from octavo.server.generation.service import Service
from octavo.server.http.errors import ApiError

Names = Mapping[str, str]  # a chat request's field -> what it was in the body


class TranslatedRequest(ModelRequest):
    """Fields that are not declared are the chat request's own, and judged there: extensions need no second home."""

    model: str
    """The name of a served model, as /v1/models lists it."""
    stream: bool | None = None
    """Whether to send the answer as server-sent events, as it is made."""
    n: Literal[1] | None = None
    """One: an answer has no choices here."""

    def unknown(self) -> Mapping[str, Any]:
        return {}

    def amounting_to(self, translated: Mapping[str, Any]) -> dict[str, Any]:
        """The body of a chat request: fields as they came, under those that were translated and are not null."""
        given = {name: value for name, value in translated.items() if value is not None}
        return {**(self.model_extra or {}), "model": self.model, "stream": self.stream, **given}


def translated(service: Service, payload: Mapping[str, Any], names: Names) -> ChatRequest:
    """Raises InvalidRequest. Null means absent, so that nothing need be left out of the payload."""
    with naming(names):
        return checked(lambda: ChatRequest.model_validate(payload), service.check_extra)


@contextmanager
def naming(names: Names) -> Iterator[None]:
    """Errors raised within name the body's fields; what is part of a translated field is told as the whole of it."""
    try:
        yield
    except ApiError as error:
        raise error.renamed(lambda field: names.get(field.partition(".")[0], field)) from error


def declared(part: BaseModel) -> dict[str, Any]:
    """The fields that the shape has and the client gave."""
    return part.model_dump(include=set(type(part).model_fields), exclude_none=True, by_alias=True)
