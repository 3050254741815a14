"""An Operation tells the API's document the types of a route, and is declared beside the route."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from octavo.server.http.errors import (
    ApiError,
    BodyTooLarge,
    ErrorBody,
    HeadersTooLarge,
    InternalError,
    InvalidRequest,
    ModelNotFound,
    RequestTimeout,
    ServiceUnavailable,
    TooManyRequests,
    UnsupportedEncoding,
)

Failures = tuple[type[ApiError], ...]

RECEIVING: Failures = (RequestTimeout, BodyTooLarge, UnsupportedEncoding, HeadersTooLarge)  # for any body
READING: Failures = (InvalidRequest, ModelNotFound, *RECEIVING, InternalError)  # for a body that names a model
GENERATING: Failures = (*READING, TooManyRequests, ServiceUnavailable)

_KEY = "octavo"


@dataclass(frozen=True, slots=True)
class Operation:
    """Describes a route. Types are models of pydantic, TypedDicts or unions of them; a `str` answer is plain text,
    and a `bytes` answer a file."""

    tag: str
    answer: Any
    body: type[BaseModel] | None = None
    event: Any = None  # the type of a streamed answer's events; None: it cannot be streamed
    failures: Failures = ()
    example: Mapping[str, Any] = field(default_factory=dict)  # a body, without the model, which is filled in
    parameters: Mapping[str, str] = field(default_factory=dict)  # of the path, name -> description
    named: bool = False  # events carry their type as a name, and failures are among them
    error: Any = ErrorBody  # the body of a failure

    def extra(self) -> dict[str, Any]:
        """Returns the value of a route's `openapi_extra`, in which `operation_of` finds this Operation."""
        return {_KEY: self}


def operation_of(extra: Mapping[str, Any] | None) -> Operation | None:
    """Returns the Operation in a route's `openapi_extra`, if it has one."""
    found = (extra or {}).get(_KEY)
    return found if isinstance(found, Operation) else None
