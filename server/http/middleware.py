"""Surrounds every request by an id and a log line, and by error objects.

This is plain ASGI, because BaseHTTPMiddleware would hide from the endpoint that a client has left.
"""

import asyncio
import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from octavo.server.http import page
from octavo.server.http.errors import ANTHROPIC_PATH, ApiError, ServiceUnavailable, as_api_error, error_response
from octavo.server.http.paths import PROBES, route_path
from octavo.server.http.streaming import ClientLeft
from octavo.server.http.trace import Trace

logger = logging.getLogger(__name__)

REQUEST_ID = "x-request-id"
# Anthropic's clients look for the id in the one header, and send the other with every request.
ANTHROPIC_REQUEST_ID, ANTHROPIC_VERSION = "request-id", "anthropic-version"
CLIENT_CLOSED_REQUEST = 499  # nginx's name for this status, which only the log shows
_SANE_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")


class RequestTrace:
    """Gives the request and its response an id, and writes one log line when all is over; it is outermost."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = Headers(scope=scope)
        given = headers.get(REQUEST_ID, "")
        request_id = given if _SANE_ID.fullmatch(given) else uuid.uuid4().hex
        trace = Trace(request_id, scope["method"], _printable(route_path(scope)))
        trace.attach(scope)
        is_anthropic = trace.path.startswith(ANTHROPIC_PATH) or ANTHROPIC_VERSION in headers
        names = (REQUEST_ID, ANTHROPIC_REQUEST_ID) if is_anthropic else (REQUEST_ID,)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                trace.status = message["status"]
                MutableHeaders(scope=message).update(dict.fromkeys(names, request_id))
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            level = logging.DEBUG if trace.path in PROBES or page.is_open(trace.path) else logging.INFO
            logger.log(level, "%s", trace.line(time.perf_counter()))


class Errors:
    """Turns exceptions into error objects; an exception after the headers can only end the connection."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        started = False

        async def send_noting_start(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, send_noting_start)
        except ClientLeft:
            Trace.of(scope).status = CLIENT_CLOSED_REQUEST
        except (Exception, asyncio.CancelledError) as error:
            if started:
                raise
            answer = error_response(_told(error), route_path(scope), Trace.of(scope).request_id)
            await answer(scope, receive, send)


def _told(error: Exception | asyncio.CancelledError) -> ApiError:
    """Returns what the client is told. Requests are cancelled by one alone: the server, when it ends."""
    if isinstance(error, asyncio.CancelledError):
        return ServiceUnavailable("The server is shutting down.")
    return as_api_error(error)


def _printable(path: str) -> str:
    """Returns a path, shortened, that a log line can hold."""
    return "".join(character if character.isprintable() else "?" for character in path[:200])
