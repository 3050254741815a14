"""Checks API keys, in constant time: `Authorization: Bearer KEY` or, from Anthropic's clients, `x-api-key: KEY`.

Whatever tells callers apart knows a key by an opaque name. The key itself goes no further than this file.
"""

import hmac
import secrets
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from octavo.server.http import page
from octavo.server.http.errors import InvalidApiKey
from octavo.server.http.paths import DOCUMENT, PROBES, VERSION, route_path

_CALLER = "octavo.caller"


def caller_of(scope: Scope) -> str:
    """Returns the name of the key that a request came with; all requests have the name "" where no key is asked for.

    Equal keys have equal names until the server is started again. A name tells nothing of its key.
    """
    name = scope.get(_CALLER, "")
    assert isinstance(name, str)
    return name


class ApiKeys:
    """Is ASGI middleware that raises InvalidApiKey, for the error middleware around it to answer."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self._app = app
        secret = secrets.token_bytes(32)
        self._names = {key: hmac.digest(secret, key, "sha256").hex() for key in map(str.encode, keys)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._names and not _is_open(route_path(scope)):
            scope[_CALLER] = self._name(_given(Headers(scope=scope)))
        await self._app(scope, receive, send)

    def _name(self, given: str) -> str:
        """Returns the name of a key. Raises InvalidApiKey."""
        if not given:
            raise InvalidApiKey("An API key is required: send it as 'Authorization: Bearer KEY'.")
        candidate = given.encode("latin-1")  # Headers has decoded it from latin-1
        matches = [
            name for key, name in self._names.items() if hmac.compare_digest(candidate, key)
        ]  # compares with all keys, so that the time tells nothing
        if not matches:
            raise InvalidApiKey("The API key is not valid.")
        return matches[0]


def _is_open(path: str) -> bool:
    return path in (*PROBES, VERSION, DOCUMENT) or page.is_open(path)


def _given(headers: Headers) -> str:
    """Returns the key that a request brings, or ""."""
    scheme, _, bearer = headers.get("authorization", "").partition(" ")
    return (bearer if scheme.lower() == "bearer" else headers.get("x-api-key", "")).strip()
