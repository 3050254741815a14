"""A Connection reads one client's requests with h11, and keeps silent, slow and hostile clients within limits.

waiting for a head     timeout_header from its first byte (or from the connection's beginning): 408, or just closed
idle between requests  timeout_keep_alive: closed
receiving a body       body.BodyPace: 408
request runs           no limit here
client does not read   timeout_send: aborted
the rest of a body comes after the answer     LINGER: closed
"""

import asyncio
import logging
import uuid
from functools import partial
from http import HTTPStatus
from typing import Any, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from octavo.server.config import ServerConfig
from octavo.server.http.body import MIN_RATE
from octavo.server.http.connections import Connections
from octavo.server.http.errors import (
    ApiError,
    HeadersTooLarge,
    InvalidRequest,
    RequestTimeout,
    ServiceUnavailable,
    error_response,
)

logger = logging.getLogger(__name__)

LINGER = 5.0  # seconds in which a body may end that nobody reads, since its answer was sent
FREE_CHUNKS = 16_384  # chunks of a body that may be of any size
CHUNK = 64  # bytes that any further ones have on the average: each takes time, however small it is


class Requests(h11.Connection):
    """Reads requests as h11 does, and refuses those that are ambiguous or that only cost time."""

    def __init__(self, config: ServerConfig) -> None:
        super().__init__(h11.SERVER, config.h11_max_incomplete_event_size)
        self._most_headers = config.h11_max_header_count
        self._longest_head = config.h11_max_incomplete_event_size
        self._chunks = self._length = 0
        self.path = ""
        self.refusal: ApiError = InvalidRequest("This is no HTTP request.")

    def next_event(self) -> Any:
        """Raises h11.RemoteProtocolError; `refusal` then says why."""
        reads_head = self.their_state is h11.IDLE
        try:
            event = super().next_event()
        except h11.RemoteProtocolError as error:
            if reads_head and error.error_status_hint == HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE:
                self._refuse_long_head()
            self._refuse(InvalidRequest(f"This is no HTTP request that can be read: {str(error)[:200]}."))
        if isinstance(event, h11.Request):
            self._check_head(event)
        elif isinstance(event, h11.Data):
            self._check_chunk(event)
        return event

    def _check_head(self, request: h11.Request) -> None:
        self._chunks = self._length = 0
        self.path = request.target.partition(b"?")[0].decode("ascii", "replace")
        # h11 looks at the length of what is incomplete only: a head that came in one piece would pass, however long.
        if (
            sum(len(name) + len(value) + 4 for name, value in request.headers) + len(request.target)
            > self._longest_head
        ):
            self._refuse_long_head()
        names = [name for name, _ in request.headers]
        if len(names) > self._most_headers:
            self._refuse(
                HeadersTooLarge(f"The request has {len(names)} header fields; send at most {self._most_headers}.")
            )
        if b"content-length" in names and b"transfer-encoding" in names:
            self._refuse(InvalidRequest("The request has Content-Length and Transfer-Encoding; send one of them."))

    def _check_chunk(self, data: h11.Data) -> None:
        self._chunks += data.chunk_start
        self._length += len(data.data)
        if self._chunks > FREE_CHUNKS + self._length / CHUNK:
            self._refuse(InvalidRequest("The body comes in too many small chunks; send larger ones."))

    def _refuse_long_head(self) -> None:
        most = self._longest_head
        self._refuse(HeadersTooLarge(f"The head of the request is too long; send at most {most:,} bytes."))

    def _refuse(self, error: ApiError) -> None:
        self.refusal = error
        raise h11.RemoteProtocolError(error.message)


class Connection(H11Protocol):
    """Implements connections.Member."""

    def __init__(self, limits: ServerConfig, connections: Connections, **parts: Any) -> None:
        super().__init__(**parts)
        self.conn: Requests = Requests(limits)
        self._limits = limits
        self._connections = connections
        self._begun = self.loop.time()
        self._head_begun: float | None = None  # when the first byte of a head came that is not complete
        self._answered = 0.0
        self._draining: tuple[float, int] | None = None  # since when it has to be read, and how many bytes there were

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if not self._connections.enter(self):
            self._refuse(ServiceUnavailable("The server has too many connections; try again later."))

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.leave(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if self._awaits_head() and self._head_begun is None:
            self._head_begun = self.loop.time()
        super().data_received(data)
        self._note()

    def on_response_complete(self) -> None:
        self._answered = self.loop.time()
        super().on_response_complete()
        self._note()

    def pause_writing(self) -> None:
        self._draining = None
        super().pause_writing()

    def resume_writing(self) -> None:
        self._draining = None
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Is called by the base class when h11 raises an error."""
        self._refuse(self.conn.refusal)

    def _unsupported_upgrade_warning(self) -> None:
        """Does not warn: an offer of HTTP/2 comes with each request of some clients, and may be passed over."""

    def give_way(self) -> None:
        self.transport.close()

    def check(self, now: float) -> None:
        limits = self._limits
        if self.transport.is_closing() or self.flow.write_paused:
            self._check_drain(now, limits.timeout_send)
        elif self._awaits_head():
            self._check_head(now, limits.timeout_header)
        elif self._is_answered() and self.conn.their_state is h11.SEND_BODY and now - self._answered > LINGER:
            self.transport.close()

    def _check_drain(self, now: float, patience: float) -> None:
        """Ends the connection if what was written to it is read too slowly."""
        unsent = self.transport.get_write_buffer_size()
        since, before = self._draining = self._draining or (now, unsent)
        if now - since > patience + max(before - unsent, 0) / MIN_RATE:
            logger.info("a client that does not read its answer was cut off (%d bytes unread)", unsent)
            self.transport.abort()

    def _check_head(self, now: float, patience: float) -> None:
        if self._head_begun is not None and now - self._head_begun > patience:
            self._refuse(RequestTimeout(f"The head of the request was not complete after {patience:g} seconds."))
        elif self._head_begun is None and self.cycle is None and now - self._begun > patience:
            self.transport.close()

    def _awaits_head(self) -> bool:
        return self.conn.their_state is h11.IDLE

    def _is_answered(self) -> bool:
        return self.cycle is not None and self.cycle.response_complete

    def _note(self) -> None:
        idle = self._awaits_head()
        if not idle:
            self._head_begun = None
        self._connections.note(self, idle)

    def _refuse(self, error: ApiError) -> None:
        """Answers with an error, if an answer has not begun, and closes."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            id = uuid.uuid4().hex
            logger.info("%s - %s %d %s", id, self.conn.path or "-", error.status, error.message)
            self._write(error, id)
        self.transport.close()

    def _write(self, error: ApiError, request_id: str) -> None:
        response = error_response(error, self.conn.path, request_id)
        headers = [pair for pair in response.raw_headers if pair[0] != b"connection"]
        headers += [(b"connection", b"close"), (b"x-request-id", request_id.encode())]
        events = (
            h11.Response(status_code=response.status_code, headers=headers, reason=error.status.phrase.encode()),
            h11.Data(data=bytes(response.body)),
            h11.EndOfMessage(),
        )
        self.transport.write(b"".join(self.conn.send(event) or b"" for event in events))


def protocol(limits: ServerConfig, connections: Connections) -> type[asyncio.Protocol]:
    """Returns what makes a Connection, in the form in which uvicorn takes it."""
    return cast(type[asyncio.Protocol], partial(Connection, limits, connections))
