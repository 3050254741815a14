"""Where a request goes: its path, whatever prefix a reverse proxy left before it."""

from starlette.types import ASGIApp, Receive, Scope, Send

PROBES = ("/health", "/metrics")  # asked every few seconds, by probes and scrapers that carry no key
DOCUMENT = "/openapi.json"  # what the API is, which is no secret


class RootPath:
    """Makes the scope what ASGI asks for, a path that begins with root_path, whether the proxy takes the prefix away
    or leaves it."""

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self._app = app
        self._root = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._root and scope["type"] == "http":
            path = scope["path"] if scope["path"].startswith(self._root + "/") else self._root + scope["path"]
            scope = {**scope, "root_path": self._root, "path": path}
        await self._app(scope, receive, send)


def route_path(scope: Scope) -> str:
    """The path as the routes know it."""
    return str(scope["path"]).removeprefix(scope.get("root_path", ""))
