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
