"""A wrong API key is refused before anything else is looked at; probes need none."""

import asyncio
import re

import pytest
from starlette.types import Receive, Scope, Send

from octavo.server.config import ServerConfig
from octavo.server.http.auth import ApiKeys, caller_of
from tests.server.client import MODEL, Client

CLIENT = Client(config=ServerConfig((MODEL,), api_keys=("first", "zweiter-schlüssel")))


@pytest.mark.parametrize("value", ["", "Bearer", "Bearer ", "Bearer wrong", "Basic first", "first", "Bearer firs"])
def test_wrong_keys(value: str) -> None:
    for path in ("/v1/models", "/v1/nothing", "/nothing"):
        reply = CLIENT.get(path, authorization=value)
        assert (reply.status, reply.error["code"]) == (401, "invalid_api_key")
        assert reply.headers["www-authenticate"] == "Bearer"
        assert "wrong" not in reply.error["message"]
    assert CLIENT.post("/v1/completions", b"not even json", authorization=value).status == 401


@pytest.mark.parametrize("value", ["Bearer first", "bearer first", "Bearer  first "])
def test_right_keys(value: str) -> None:
    assert CLIENT.get("/v1/models", authorization=value).status == 200


def test_as_anthropics_clients_send_it() -> None:
    assert CLIENT.get("/v1/models", x_api_key="first").status == 200
    assert CLIENT.get("/v1/models", x_api_key="wrong").status == 401
    assert CLIENT.get("/v1/models", x_api_key="first", authorization="Bearer wrong").status == 401
    refused = CLIENT.post("/v1/messages", {}, x_api_key="wrong").json()
    assert refused["error"]["type"] == "authentication_error"


def test_a_key_that_is_not_ascii() -> None:
    sent = "Bearer " + "zweiter-schlüssel".encode().decode("latin-1")
    assert CLIENT.get("/v1/models", authorization=sent).status == 200


@pytest.mark.parametrize("path", ["/health", "/metrics", "/version", "/", "/web/app.js"])
def test_open_paths(path: str) -> None:
    assert CLIENT.get(path).status == 200


def test_no_keys_no_authentication() -> None:
    assert Client().get("/v1/models").status == 200
    assert Client().get("/v1/models", authorization="Bearer anything").status == 200


def callers(keys: tuple[str, ...], *given: str) -> list[str]:
    """Returns the names of those who send the given keys, one after another."""
    names = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        names.append(caller_of(scope))

    async def call(key: str) -> None:
        scope = {"type": "http", "path": "/v1/models", "headers": [(b"x-api-key", key.encode())]}
        await checked(scope, None, None)  # type: ignore[arg-type]

    checked = ApiKeys(app, keys)
    for key in given:
        asyncio.run(call(key))
    return names


def test_a_caller_has_an_opaque_name() -> None:
    first, second, again = callers(("first", "schlüssel"), "first", "schlüssel", "first")
    assert first == again != second
    assert re.fullmatch("[0-9a-f]{64}", first)
    assert first not in callers(("first",), "first")  # another server's secret gives another name


def test_without_keys_callers_are_not_told_apart() -> None:
    assert callers((), "first", "second") == ["", ""]
