"""What the API's document says of a route: its types, declared where the route is."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from octavo.server.http.errors import (
    ApiError,
    BodyTooLarge,
    ErrorBody,
    InternalError,
    InvalidRequest,
    ModelNotFound,
    ServiceUnavailable,
    TooManyRequests,
)

Failures = tuple[type[ApiError], ...]

READING: Failures = (InvalidRequest, ModelNotFound, BodyTooLarge, InternalError)  # a body that names a model
GENERATING: Failures = (*READING, TooManyRequests, ServiceUnavailable)

_KEY = "octavo"


@dataclass(frozen=True, slots=True)
class Operation:
    """Types are whatever pydantic reads: its models, TypedDicts, unions of them; `str` answers are plain text."""

    tag: str
    answer: Any
    body: type[BaseModel] | None = None
    event: Any = None  # of a streamed answer; None: it cannot be streamed
    failures: Failures = ()
    example: Mapping[str, Any] = field(default_factory=dict)  # a body; its model is filled in
    parameters: Mapping[str, str] = field(default_factory=dict)  # of the path: name -> description
    named: bool = False  # whether its events carry their type as a name; then failures are among them
    error: Any = ErrorBody  # the body of a failure

    def extra(self) -> dict[str, Any]:
        """For a route's `openapi_extra`, where `operation_of` finds it."""
        return {_KEY: self}


def operation_of(extra: Mapping[str, Any] | None) -> Operation | None:
    found = (extra or {}).get(_KEY)
    return found if isinstance(found, Operation) else None
