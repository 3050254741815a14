"""The prefix of a reverse proxy is understood whether the proxy leaves it or removes it."""

import asyncio
from typing import Any

import pytest

from octavo.server.config import ServerConfig
from octavo.server.http.paths import RootPath, route_path
from tests.server.client import MODEL, Client


@pytest.mark.parametrize(
    ("path", "root", "expected"),
    [
        ("/v1/models", "", "/v1/models"),
        ("/octavo/v1/models", "/octavo", "/v1/models"),
        ("/v1/models", "/octavo", "/v1/models"),
        ("/octavo/", "/octavo", "/"),
        ("/octavo", "/octavo", "/octavo"),
        ("/octavox/v1", "/octavo", "/octavox/v1"),
    ],
)
def test_route_path(path: str, root: str, expected: str) -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope)

    given = {"type": "http", "path": path, "root_path": ""}
    asyncio.run(RootPath(app, root)(given, None, None))  # type: ignore[arg-type]
    assert route_path(seen[0]) == expected
    assert seen[0]["path"] == root + expected
    assert given["path"] == path


@pytest.mark.parametrize("prefix", ["", "/a/b"])
def test_the_app_under_a_prefix(prefix: str) -> None:
    client = Client(config=ServerConfig((MODEL,), root_path="/a/b", api_keys=("key",)))
    assert client.get(f"{prefix}/health").status == 200
    assert client.get(f"{prefix}/v1/models").status == 401
    assert client.get(f"{prefix}/v1/models", authorization="Bearer key").status == 200
    assert client.get("/c/v1/models", authorization="Bearer key").status == 404


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/chat/completions", "/v1/chat/completions"),  # the base URL of an OpenAI client ends with /v1
        ("/v1/v1/messages", "/v1/messages"),  # that of an Anthropic client does not
        ("/v1//responses", "/v1/responses"),
        ("/v1/chat/completions/", "/v1/chat/completions"),
        ("/v1/embeddings", None),
        ("/v1", None),
        ("/" * 5000, None),
    ],
)
def test_an_unknown_path_is_told_the_one_that_is_meant(path: str, meant: str | None) -> None:
    reply = Client().post(path, {})
    assert reply.status == 404
    assert (f"do you mean {meant}?" in reply.error["message"]) == (meant is not None)
    assert ("/docs lists" in reply.error["message"]) == (meant is None)
