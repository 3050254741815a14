"""Checks API keys, in constant time: `Authorization: Bearer KEY` or, from Anthropic's clients, `x-api-key: KEY`."""

import hmac
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from octavo.server.http import page
from octavo.server.http.errors import InvalidApiKey
from octavo.server.http.paths import DOCUMENT, PROBES, route_path


class ApiKeys:
    """Is ASGI middleware that raises InvalidApiKey, for the error middleware around it to answer."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self._app = app
        self._keys = [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._keys and not _is_open(route_path(scope)):
            self._check(_given(Headers(scope=scope)))
        await self._app(scope, receive, send)

    def _check(self, given: str) -> None:
        if not given:
            raise InvalidApiKey("An API key is required: send it as 'Authorization: Bearer KEY'.")
        candidate = given.encode("latin-1")  # Headers has decoded it from latin-1
        matches = [
            hmac.compare_digest(candidate, key) for key in self._keys
        ]  # compares with all keys, so that the time tells nothing
        if not any(matches):
            raise InvalidApiKey("The API key is not valid.")


def _is_open(path: str) -> bool:
    return path in (*PROBES, DOCUMENT) or page.is_open(path)


def _given(headers: Headers) -> str:
    """Returns the key that a request brings, or ""."""
    scheme, _, bearer = headers.get("authorization", "").partition(" ")
    return (bearer if scheme.lower() == "bearer" else headers.get("x-api-key", "")).strip()
