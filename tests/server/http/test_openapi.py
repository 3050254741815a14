"""/openapi.json describes every served route and every parameter, and is valid OpenAPI."""

import re
from http import HTTPStatus
from typing import Any

import pytest
from fastapi.routing import APIRoute
from openapi_spec_validator import OpenAPIV31SpecValidator

from octavo.server import app as application
from octavo.server.config import ServerConfig
from octavo.server.http.errors import ApiError
from octavo.server.http.openapi import MEANINGS
from octavo.server.http.operations import Operation, operation_of
from tests.server.client import MODEL, Client

UNDESCRIBED = {"/openapi.json", "/", "/web/{name}", "/docs"}  # these are no part of the API


@pytest.fixture
def routes(monkeypatch: pytest.MonkeyPatch) -> list[APIRoute]:
    """Returns all routes that the app includes and describes."""
    included: list[APIRoute] = []
    with monkeypatch.context() as patch:
        patch.setattr(application.FastAPI, "include_router", lambda self, router: included.extend(router.routes))
        Client()
    return [route for route in included if route.path not in UNDESCRIBED]


def document(**config: Any) -> dict[str, Any]:
    """Reads the document without a key, since the API is no secret."""
    found = Client(config=ServerConfig((MODEL,), **config)).get("/openapi.json").json()
    assert isinstance(found, dict)
    return found


def bodies(routes: list[APIRoute]) -> list[Operation]:
    found = [operation_of(route.openapi_extra) for route in routes]
    return [operation for operation in found if operation is not None and operation.body is not None]


@pytest.mark.parametrize("config", [{}, {"api_keys": ("secret",)}])
def test_it_is_valid(config: dict[str, Any]) -> None:
    OpenAPIV31SpecValidator(document(**config)).validate()


def test_every_route_is_described(routes: list[APIRoute]) -> None:
    served = {(re.sub(r":\w+}", "}", route.path), method) for route in routes for method in route.methods - {"HEAD"}}
    described = {(path, method.upper()) for path, item in document()["paths"].items() for method in item}
    assert described == served


def test_every_operation_says_what_it_does() -> None:
    ids = []
    for item in document()["paths"].values():
        for operation in item.values():
            ids.append(operation["operationId"])
            assert operation["summary"].endswith(".") and "\n" not in operation["summary"]
            assert operation["responses"]["200"]["content"]
    assert len(set(ids)) == len(ids)


def test_every_parameter_is_described(routes: list[APIRoute]) -> None:
    found = document()
    schemas = found["components"]["schemas"]
    for operation in bodies(routes):
        assert operation.body is not None
        properties = schemas[operation.body.__name__]["properties"]
        assert properties.keys() == operation.body.model_fields.keys()
    for name in _reached(found):
        for field, schema in schemas[name].get("properties", {}).items():
            assert schema.get("description", "").endswith("."), f"{name}.{field} needs a docstring below it"


def _reached(found: dict[str, Any]) -> set[str]:
    """Returns the names of the components that request bodies are made of."""
    reached: set[str] = set()
    pending = [item["post"]["requestBody"] for item in found["paths"].values() if "requestBody" in item.get("post", {})]
    while pending:
        names = set(re.findall(r"#/components/schemas/([\w.-]+)", str(pending.pop()))) - reached
        reached |= names
        pending += [found["components"]["schemas"][name] for name in names]
    return reached


def test_examples_are_answered() -> None:
    for path, item in document()["paths"].items():
        if "requestBody" in item.get("post", {}):
            example = item["post"]["requestBody"]["content"]["application/json"]["example"]
            assert Client().post(path, example).status == 200, path


def test_bounds_and_meanings_are_the_models_own() -> None:
    properties = document()["components"]["schemas"]["CompletionRequest"]["properties"]
    assert {"minimum": 0, "maximum": 2, "type": "number"} in properties["temperature"]["anyOf"]
    statuses = {failure.status for failure in ApiError.__subclasses__()}
    assert statuses - {HTTPStatus.METHOD_NOT_ALLOWED} == MEANINGS.keys()


def test_streams_and_failures() -> None:
    responses = document()["paths"]["/v1/chat/completions"]["post"]["responses"]
    assert {"400", "404", "408", "413", "415", "429", "431", "500", "503"} == responses.keys() - {"200"}
    event = responses["200"]["content"]["text/event-stream"]["schema"]["x-event"]
    assert event["anyOf"][0] == {"$ref": "#/components/schemas/ChatChunk"}
    assert "retry-after" in responses["429"]["headers"]


def test_keys_lock_all_but_the_probes() -> None:
    paths = document(api_keys=("secret",))["paths"]
    assert paths["/health"]["get"]["security"] == []
    chat = paths["/v1/chat/completions"]["post"]
    assert chat["security"] == [{"key": []}] and "401" in chat["responses"]
    assert "401" not in document()["paths"]["/v1/chat/completions"]["post"]["responses"]
