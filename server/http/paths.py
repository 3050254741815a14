"""Finds the path of a request, whatever prefix a reverse proxy has left before it."""

import re
from collections.abc import Collection

from starlette.types import ASGIApp, Receive, Scope, Send

PROBES = ("/health", "/metrics")  # probes and scrapers, which have no key, ask for them every few seconds
VERSION = "/version"  # It is as public as the page that shows it.
DOCUMENT = "/openapi.json"  # it describes the API, which is no secret


class RootPath:
    """Makes the scope's path begin with root_path, as ASGI asks, whether the proxy removes the prefix or leaves it."""

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self._app = app
        self._root = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._root and scope["type"] == "http":
            path = scope["path"] if scope["path"].startswith(self._root + "/") else self._root + scope["path"]
            scope = {**scope, "root_path": self._root, "path": path}
        await self._app(scope, receive, send)


def route_path(scope: Scope) -> str:
    """Returns the path without the prefix, as routes are declared."""
    return str(scope["path"]).removeprefix(scope.get("root_path", ""))


def path_meant(path: str, known: Collection[str]) -> str | None:
    """Returns the known path that a client means whose base URL has no /v1, /v1 twice, or a slash too many."""
    single = re.sub("/+", "/", path[:1000]).rstrip("/")
    return next((each for each in (single, f"/v1{single}", single.removeprefix("/v1")) if each in known), None)
