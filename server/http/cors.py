"""Says to browsers which web pages may call the server (CORS): its own, and those that --allowed-origins names."""

import logging
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from octavo.server.http.errors import InvalidRequest, error_response
from octavo.server.http.paths import route_path
from octavo.server.http.trace import Trace

logger = logging.getLogger(__name__)

MAX_REMEMBERED = 100  # logged origins: whoever invents origins must not fill the log
MAX_SHOWN = 200  # characters of an origin

# Only pages of other origins ask so with a header Origin. Their POST of JSON follows a preflight, which is OPTIONS; one
# without a preflight comes from the server's own page, behind a proxy that has changed the header Host.
ASK_OTHERS = ("OPTIONS", "GET", "HEAD")


class Cors:
    """Grants pages of the allowed origins what they ask for, and answers their preflights, which never have a key.

    A page of another origin gets no CORS headers, so that its browser keeps answers from it. The log names each such
    origin once.
    """

    def __init__(self, app: ASGIApp, origins: Sequence[str], exposed: Sequence[str]) -> None:
        """`origins` may hold "*", which is every page. `exposed` are the response headers that pages may read."""
        self._app = app
        self._all = "*" in origins
        self._origins = frozenset(origins)
        self._granting = CORSMiddleware(
            app,
            allow_origins=["*"] if self._all else [],
            allow_origin_regex=None if self._all else ".*",  # is asked for origins that are allowed only
            allow_methods=["*"],
            allow_headers=["*"],
            allow_private_network=True,
            expose_headers=exposed,
        )
        self._logged: set[str] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope) if scope["type"] == "http" else Headers()
        origin = headers.get("origin")
        if origin is None:
            return await self._app(scope, receive, send)
        if self._all or origin in self._origins or is_own(origin, headers):
            return await self._granting(scope, receive, send)
        if scope["method"] in ASK_OTHERS:
            self._log_once(origin[:MAX_SHOWN])
        if scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            refused = error_response(_refusal(origin), route_path(scope), Trace.of(scope).request_id)
            return await refused(scope, receive, send)
        return await self._app(scope, receive, send)

    def _log_once(self, origin: str) -> None:
        if origin not in self._logged and len(self._logged) < MAX_REMEMBERED:
            self._logged.add(origin)
            logger.warning("pages of %r may not read answers; --allowed-origins %r would allow them to", origin, origin)


def is_own(origin: str, headers: Headers) -> bool:
    """Returns whether the calling page is the server's own. The scheme may differ behind a proxy that ends TLS."""
    if headers.get("sec-fetch-site") == "same-origin":
        return True
    try:
        return urlsplit(origin).netloc == headers.get("host", "").lower() != ""
    except ValueError:  # The origin is no URL.
        return False


def _refusal(origin: str) -> InvalidRequest:
    shown = origin[:MAX_SHOWN]
    return InvalidRequest(
        f"Pages of {shown} may not call this server; start it with --allowed-origins {shown} to allow them."
    )
