"""Tells clients in HTTP's terms what an engine refuses."""

from octavo.engine.client import QueueFull, Refused, TooLong, UnknownToken
from octavo.server.http.errors import (
    ApiError,
    ContextLengthExceeded,
    InvalidRequest,
    ServiceUnavailable,
    TooManyRequests,
)


def as_api_error(refused: Refused) -> ApiError:
    """Returns the error that says why the engine took nothing."""
    match refused:
        case TooLong():
            return ContextLengthExceeded(str(refused))
        case UnknownToken():
            return InvalidRequest(str(refused))
        case QueueFull():
            return TooManyRequests(str(refused))
        case _:
            return ServiceUnavailable(str(refused))
