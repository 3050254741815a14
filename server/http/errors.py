"""ApiError is what a client sees of any failure, as OpenAI's error object or Anthropic's.

ApiError
├── InvalidRequest 400 ── ContextLengthExceeded 400
├── InvalidApiKey 401
├── NotFound 404 ── ModelNotFound 404
├── MethodNotAllowed 405
├── BodyTooLarge 413
├── TooManyRequests 429
├── InternalError 500
└── ServiceUnavailable 503
"""

import logging
from http import HTTPStatus
from typing import Literal

from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from typing_extensions import TypedDict

from octavo.server.http.wire import encode_json

logger = logging.getLogger(__name__)

RETRY_AFTER = "2"  # seconds; short, because SDKs obey it, and queues move and engines restart within seconds
ANTHROPIC_PATH = "/v1/messages"
ANTHROPIC_TYPES = {
    HTTPStatus.BAD_REQUEST: "invalid_request_error",
    HTTPStatus.UNAUTHORIZED: "authentication_error",
    HTTPStatus.NOT_FOUND: "not_found_error",
    HTTPStatus.METHOD_NOT_ALLOWED: "invalid_request_error",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "invalid_request_error",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error",
    HTTPStatus.INTERNAL_SERVER_ERROR: "api_error",
    HTTPStatus.SERVICE_UNAVAILABLE: "overloaded_error",
}
MAX_MESSAGE = 500  # characters; a message may quote what the client has sent, which may be long


class StartupError(Exception):
    """Says that the server cannot start. The message is one sentence, which the user reads instead of a traceback."""


class ErrorDetail(TypedDict):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(TypedDict):
    error: ErrorDetail


class AnthropicDetail(TypedDict):
    type: str
    message: str


class AnthropicBody(TypedDict):
    type: Literal["error"]
    error: AnthropicDetail


class ApiError(Exception):
    """Is a failure with its HTTP status. `param` names the field at fault, with dots: messages.0.content."""

    status = HTTPStatus.INTERNAL_SERVER_ERROR
    type = "server_error"
    code: str | None = None
    headers: dict[str, str] = {}

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message if len(message) <= MAX_MESSAGE else message[:MAX_MESSAGE] + " ..."
        self.param = param if param is None else param[:MAX_MESSAGE]

    def body(self) -> ErrorBody:
        """Returns OpenAI's error object."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def anthropic_body(self) -> AnthropicBody:
        """Returns Anthropic's error object."""
        return {"type": "error", "error": {"type": ANTHROPIC_TYPES[self.status], "message": self.message}}


class InvalidRequest(ApiError):
    status = HTTPStatus.BAD_REQUEST
    type = "invalid_request_error"


class ContextLengthExceeded(InvalidRequest):
    code = "context_length_exceeded"


class InvalidApiKey(ApiError):
    status = HTTPStatus.UNAUTHORIZED
    type = "invalid_request_error"
    code = "invalid_api_key"
    headers = {"www-authenticate": "Bearer"}


class NotFound(ApiError):
    status = HTTPStatus.NOT_FOUND
    type = "invalid_request_error"
    code = "not_found"


class ModelNotFound(NotFound):
    code = "model_not_found"


class MethodNotAllowed(ApiError):
    status = HTTPStatus.METHOD_NOT_ALLOWED
    type = "invalid_request_error"
    code = "method_not_allowed"


class BodyTooLarge(ApiError):
    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    type = "invalid_request_error"
    code = "request_too_large"


class TooManyRequests(ApiError):
    status = HTTPStatus.TOO_MANY_REQUESTS
    type = "rate_limit_error"
    code = "queue_full"
    headers = {"retry-after": RETRY_AFTER}


class InternalError(ApiError):
    code = "internal_error"


class ServiceUnavailable(ApiError):
    status = HTTPStatus.SERVICE_UNAVAILABLE
    code = "engine_unavailable"
    headers = {"retry-after": RETRY_AFTER}


def from_validation(error: ValidationError) -> InvalidRequest:
    """Returns pydantic's first complaint in plain words, without the input that caused it."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    param = ".".join(str(part) for part in first["loc"]) or None
    match first["type"]:
        case "json_invalid":
            return InvalidRequest(f"The body is not valid JSON: {first['msg'].removeprefix('Invalid JSON: ')}.")
        case "model_type":
            return InvalidRequest(
                "The body must be a JSON object." if param is None else f"'{param}' must be an object.", param
            )
        case "missing":
            return InvalidRequest(f"The required parameter '{param}' is missing.", param)
        case "too_short":
            return InvalidRequest(f"'{param}' must not be empty.", param)
        case "value_error":
            return InvalidRequest(f"'{param}' {first['msg'].removeprefix('Value error, ')}.", param)
        case _:
            reason = first["msg"].removeprefix("Input should be ")
            return InvalidRequest(
                f"'{param}' should be {reason}." if reason != first["msg"] else f"'{param}': {reason}.", param
            )


def from_http(error: HTTPException, method: str, path: str) -> ApiError:
    """Returns in plain words what the router refuses, such as an unknown path or a wrong method."""
    match error.status_code:
        case 404:
            return NotFound(f"There is nothing at {path[:100]}; the API is under /v1.")
        case 405:
            refused = MethodNotAllowed(f"{path[:100]} does not take {method}.")
            refused.headers = dict(error.headers or {})
            return refused
        case status if status < 500:
            return InvalidRequest(str(error.detail))
        case _:
            return InternalError(str(error.detail))


def as_api_error(error: Exception) -> ApiError:
    """Returns an ApiError as it is. Any other exception is a mistake of ours, whose traceback goes to the log."""
    if isinstance(error, ApiError):
        return error
    logger.error("internal error", exc_info=error)
    return InternalError("The server failed while answering this request; its log says why.")


def error_response(error: ApiError, path: str) -> Response:
    """Returns the error in the form that clients of the path expect."""
    body = error.anthropic_body() if path.startswith(ANTHROPIC_PATH) else error.body()
    return Response(encode_json(body), int(error.status), error.headers, media_type="application/json")
