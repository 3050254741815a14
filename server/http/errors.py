"""ApiError is what a client sees of any failure, as OpenAI's error object or Anthropic's.

ApiError
├── InvalidRequest 400 ── ContextLengthExceeded 400
├── InvalidApiKey 401
├── NotFound 404 ── ModelNotFound 404
├── MethodNotAllowed 405
├── RequestTimeout 408
├── BodyTooLarge 413
├── UnsupportedEncoding 415
├── TooManyRequests 429
├── HeadersTooLarge 431
├── InternalError 500
└── ServiceUnavailable 503
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Literal, Self

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from starlette.exceptions import HTTPException
from starlette.responses import Response
from typing_extensions import TypedDict

from octavo.server.http.wire import encode_json

logger = logging.getLogger(__name__)

RETRY_AFTER = "2"  # seconds; short, because SDKs obey it, and queues move and engines restart within seconds
ANTHROPIC_PATH = "/v1/messages"
# Anthropic's types of errors; any other status below 500 is an invalid_request_error, and any other above an api_error.
ANTHROPIC_TYPES = {
    HTTPStatus.UNAUTHORIZED: "authentication_error",
    HTTPStatus.NOT_FOUND: "not_found_error",
    HTTPStatus.REQUEST_TIMEOUT: "timeout_error",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "request_too_large",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error",
    HTTPStatus.SERVICE_UNAVAILABLE: "overloaded_error",
}
# OpenAI's codes for pydantic's types of errors. Bounds of numbers have more; see code_of.
CODES = {
    "missing": "missing_required_parameter",
    "too_long": "array_above_max_length",
    "too_short": "empty_array",
    "string_too_long": "string_above_max_length",
    "string_too_short": "string_below_min_length",
    "json_invalid": "invalid_json",
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
    request_id: str


@dataclass(frozen=True, slots=True)
class FieldName:
    """A FieldName is the name of a field within a message, which shows it in quotes."""

    name: str

    def __str__(self) -> str:
        return f"'{self.name}'"


class ApiError(Exception):
    """An ApiError is a failure with its HTTP status. `param` names the field at fault, dotted: messages.0.content.

    With `param` the message is a template. In it, {param} and every other value that is a FieldName become names of
    fields, which `renamed` can replace: each API has its own names for them. `code` replaces the class's.
    """

    status = HTTPStatus.INTERNAL_SERVER_ERROR
    type = "server_error"
    code: str | None = None
    headers: dict[str, str] = {}

    def __init__(self, message: str, param: str | None = None, code: str | None = None, **values: object) -> None:
        text = message if param is None else message.format(param=FieldName(param), **values)
        super().__init__(text)
        self.message = text if len(text) <= MAX_MESSAGE else text[:MAX_MESSAGE] + " ..."
        self.param = param if param is None else param[:MAX_MESSAGE]
        self.code = code or self.code
        self._template, self._field, self._values = message, param, values

    def renamed(self, own_name: Callable[[str], str]) -> Self:
        """Returns the same error with own_name(field) in place of each field, in the message and as `param`."""
        if self._field is None:
            return self
        values = {
            key: FieldName(own_name(value.name)) if isinstance(value, FieldName) else value
            for key, value in self._values.items()
        }
        return type(self)(self._template, own_name(self._field), self.code, **values)

    def __reduce__(self) -> tuple[Any, ...]:
        """Lets an error cross from one process to another, with its field; other values become their text."""
        plain = FieldName | str | int | float
        values = {key: value if isinstance(value, plain) else str(value) for key, value in self._values.items()}
        return _rebuilt, (type(self), self._template, self._field, self.code, values)

    def body(self) -> ErrorBody:
        """Returns OpenAI's error object."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def anthropic_body(self, request_id: str) -> AnthropicBody:
        """Returns Anthropic's error object."""
        other = "invalid_request_error" if self.status < HTTPStatus.INTERNAL_SERVER_ERROR else "api_error"
        detail: AnthropicDetail = {"type": ANTHROPIC_TYPES.get(self.status, other), "message": self.message}
        return {"type": "error", "error": detail, "request_id": request_id}


def _rebuilt(
    kind: type[ApiError], template: str, field: str | None, code: str | None, values: dict[str, object]
) -> ApiError:
    return kind(template, field, code, **values)


class InvalidRequest(ApiError):
    status = HTTPStatus.BAD_REQUEST
    type = "invalid_request_error"
    code = "invalid_value"


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


class RequestTimeout(ApiError):
    status = HTTPStatus.REQUEST_TIMEOUT
    type = "invalid_request_error"
    code = "request_timeout"
    headers = {"connection": "close"}


class UnsupportedEncoding(ApiError):
    status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE
    type = "invalid_request_error"
    code = "unsupported_content_encoding"
    headers = {"accept-encoding": "gzip, deflate"}


class HeadersTooLarge(ApiError):
    status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
    type = "invalid_request_error"
    code = "headers_too_large"


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


def missing_parameter(param: str) -> InvalidRequest:
    """Returns the error for a field that must be there and is not."""
    return InvalidRequest("The required parameter {param} is missing.", param, CODES["missing"])


def from_validation(error: ValidationError) -> InvalidRequest:
    """Returns pydantic's first complaint in plain words, without the input that caused it."""
    first = error.errors(include_url=False, include_input=False)[0]
    param, code = ".".join(str(part) for part in first["loc"]), code_of(first)
    match first["type"]:
        case "json_invalid":
            return InvalidRequest(f"The body is not valid JSON: {first['ctx']['error']}.", code=code)
        case "model_type" if not param:
            return InvalidRequest("The body must be a JSON object.", code=code)
        case "model_type":
            return InvalidRequest("{param} must be an object.", param, code)
        case "missing":
            return missing_parameter(param)
        case "too_long" if "max_length" in first["ctx"]:
            most = first["ctx"]["max_length"]
            return InvalidRequest("{param} has too many items; at most {most:,}.", param, code, most=most)
        case "too_short":
            return InvalidRequest("{param} must not be empty.", param, code)
        case "value_error":
            return InvalidRequest("{param} {complaint}.", param, code, complaint=first["ctx"]["error"])
        case "refused":
            return InvalidRequest("{param} {complaint}.", param, code, complaint=first["ctx"]["complaint"])
        case _:
            reason = first["msg"].removeprefix("Input should be ")
            template = "{param}: {reason}." if reason == first["msg"] else "{param} should be {reason}."
            return InvalidRequest(template, param, code, reason=reason)


def code_of(complaint: ErrorDetails) -> str:
    """Returns OpenAI's code for one of pydantic's complaints."""
    kind, context = complaint["type"], complaint.get("ctx", {})
    if kind in ("greater_than", "greater_than_equal", "less_than", "less_than_equal"):
        number = "decimal" if any(isinstance(bound, float) for bound in context.values()) else "integer"
        return f"{number}_{'below_min' if kind.startswith('greater') else 'above_max'}_value"
    if kind == "too_long" and context["field_type"] == "Dictionary":
        return "object_above_max_properties"
    if kind == "refused":
        return str(context["code"])
    return CODES.get(kind, "invalid_type" if kind.endswith("_type") else InvalidRequest.code)


def from_http(error: HTTPException, method: str, path: str, meant: str | None) -> ApiError:
    """Returns in plain words what the router refuses, such as a wrong method, or a path in whose place one is meant."""
    match error.status_code:
        case 404:
            advice = "/docs lists what there is." if meant is None else f"do you mean {meant}?"
            return NotFound(f"There is nothing at {path[:100]}; {advice}")
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


def error_response(error: ApiError, path: str, request_id: str) -> Response:
    """Returns the error in the form that clients of the path expect."""
    body = error.anthropic_body(request_id) if path.startswith(ANTHROPIC_PATH) else error.body()
    return Response(encode_json(body), int(error.status), error.headers, media_type="application/json")
