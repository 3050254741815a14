"""Makes /openapi.json, the API's description, from the types that bodies are read with and answers are built from."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from http import HTTPStatus
from typing import Any, Literal

from fastapi import APIRouter
from fastapi.routing import APIRoute
from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema
from starlette.responses import Response

from octavo import __version__
from octavo.server.config import ServerConfig
from octavo.server.http.errors import ApiError, InvalidApiKey
from octavo.server.http.operations import Operation, operation_of
from octavo.server.http.paths import DOCUMENT, PROBES, VERSION
from octavo.server.http.wire import encode_json

Json = dict[str, Any]
Schemas = Mapping[Any, Json]  # the schema of each type that operations name

REFERENCE = "#/components/schemas/{model}"
INTRODUCTION = (
    "This is OpenAI's API over a Mixtral-style model. A parameter that is null counts as absent. The server refuses a "
    "parameter of OpenAI's or vLLM's API that it does not have if the parameter asks for something; it ignores names "
    "that it does not know. Every failure is OpenAI's error object, or Anthropic's under /v1/messages, which is "
    "Anthropic's API."
)
STREAM = (
    "With `stream: true` the answer is server-sent events: each is `data: ` and a JSON object, and the last is "
    "`data: [DONE]`. A failure after the first byte is an event with the error object."
)
NAMED_STREAM = (
    "With `stream: true` the answer is server-sent events: each is `event: ` and a type, then `data: ` and a JSON "
    "object of that type. A failure after the first byte is an event, too."
)
KINDS: Mapping[Any, str] = {str: "text/plain", bytes: "application/octet-stream"}  # of answers; any other is JSON
MEANINGS: dict[HTTPStatus, str] = {
    HTTPStatus.BAD_REQUEST: "The request is invalid; `param` names the field at fault.",
    HTTPStatus.UNAUTHORIZED: "The API key is missing or wrong.",
    HTTPStatus.NOT_FOUND: "The model is not served here, or does not have what is asked for.",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "The body is larger than this server takes.",
    HTTPStatus.REQUEST_TIMEOUT: "The request stopped coming, or came too slowly.",
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: "The body's Content-Encoding is neither gzip nor deflate.",
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE: "The request has too many header fields, or too long ones.",
    HTTPStatus.TOO_MANY_REQUESTS: "The queue is full; try again after `retry-after` seconds.",
    HTTPStatus.INTERNAL_SERVER_ERROR: "The server failed; its log says why.",
    HTTPStatus.SERVICE_UNAVAILABLE: "The engine is not ready; try again after `retry-after` seconds.",
}


class _Untitled(GenerateJsonSchema):
    """Makes schemas without titles, which would only repeat the names of fields."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


@dataclass(frozen=True, slots=True)
class _Route:
    path: str  # in OpenAPI's syntax: /v1/models/{name}
    method: str
    name: str
    description: str
    operation: Operation


def router(config: ServerConfig, routers: Sequence[APIRouter]) -> APIRouter:
    """Describes those routes of `routers` that declare an Operation."""
    routes = APIRouter()
    body = encode_json(document(config, routers))

    @routes.get(DOCUMENT)
    async def read_openapi() -> Response:
        return Response(body, media_type="application/json")

    return routes


def document(config: ServerConfig, routers: Sequence[APIRouter]) -> Json:
    """Returns an OpenAPI 3.1 document. It names its own address as the server, so proxies need no configuration."""
    routes = list(_routes(routers))
    schemas, components = _schemas(tuple(type_ for route in routes for type_ in _types(route.operation)))
    paths: dict[str, Json] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method] = _operation(route, schemas, config)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Octavo", "version": __version__, "description": INTRODUCTION},
        "servers": [{"url": "."}],
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
    }


def _routes(routers: Sequence[APIRouter]) -> Iterator[_Route]:
    for route in (route for router in routers for route in router.routes):
        if not isinstance(route, APIRoute) or (operation := operation_of(route.openapi_extra)) is None:
            continue
        path = re.sub(r":\w+}", "}", route.path)
        for method in sorted((route.methods or set()) - {"HEAD"}):
            yield _Route(path, method.lower(), route.name, route.description, operation)


def _types(operation: Operation) -> Iterator[Any]:
    yield from (type_ for type_ in (operation.body, operation.answer, operation.event) if type_ is not None)
    yield operation.error


@cache
def _schemas(types: tuple[Any, ...]) -> tuple[Schemas, Json]:
    """Returns the schema of each type and the components that they refer to. They are made once for all apps."""
    mode: Literal["validation"] = "validation"
    inputs = [(type_, mode, TypeAdapter(type_)) for type_ in dict.fromkeys(types)]
    found, rest = TypeAdapter.json_schemas(inputs, ref_template=REFERENCE, schema_generator=_Untitled)
    return {type_: schema for (type_, _), schema in found.items()}, rest.get("$defs", {})


def _operation(route: _Route, schemas: Schemas, config: ServerConfig) -> Json:
    summary, _, rest = route.description.partition("\n")
    locked = bool(config.api_keys) and route.path not in (*PROBES, VERSION)
    failures = (*route.operation.failures, *([InvalidApiKey] if locked else []))
    described: Json = {
        "operationId": route.name,
        "tags": [route.operation.tag],
        "summary": summary,
        "description": rest.strip() or summary,
        "security": [{"key": []}] if locked else [],
        "responses": {"200": _answer(route.operation, schemas)} | _failures(failures, schemas[route.operation.error]),
    }
    if route.operation.parameters:
        described["parameters"] = [_parameter(*item) for item in route.operation.parameters.items()]
    if route.operation.body is not None:
        content: Json = {"schema": schemas[route.operation.body]}
        if route.operation.example:
            content["example"] = {"model": config.served_model_name, **route.operation.example}
        described["requestBody"] = {"required": True, "content": {"application/json": content}}
    return described


def _parameter(name: str, description: str) -> Json:
    return {"name": name, "in": "path", "required": True, "description": description, "schema": {"type": "string"}}


def _answer(operation: Operation, schemas: Schemas) -> Json:
    kind = KINDS.get(operation.answer, "application/json")
    answer: Json = {
        "description": "The request was answered.",
        "content": {kind: {"schema": schemas[operation.answer]}},
    }
    if operation.event is not None:
        event = schemas[operation.event]
        events = event if operation.named else {"anyOf": [event, schemas[operation.error]]}
        description = NAMED_STREAM if operation.named else STREAM
        stream = {"type": "string", "description": description, "x-event": events}
        answer["content"]["text/event-stream"] = {"schema": stream}
    return answer


def _failures(failures: Sequence[type[ApiError]], schema: Json) -> Json:
    content = {"application/json": {"schema": schema}}
    return {
        str(int(failure.status)): {
            "description": MEANINGS[failure.status],
            "headers": {name: {"schema": {"type": "string"}} for name in failure.headers},
            "content": content,
        }
        for failure in sorted(failures, key=lambda failure: failure.status)
    }
