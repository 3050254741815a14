"""Receives bodies within limits of size and time, and unpacks those that are compressed.

Each is plain ASGI middleware around `receive`: nothing happens to a body that nobody asks for.
"""

import asyncio
import zlib

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from octavo.server.http.errors import BodyTooLarge, InvalidRequest, RequestTimeout, UnsupportedEncoding

MIN_RATE = 500  # bytes a second on the average; whoever sends or reads more slowly is cut off
GZIP, ZLIB, RAW = 31, 15, -15  # the forms of compressed data, as zlib numbers them
CODINGS = {"gzip": GZIP, "x-gzip": GZIP, "deflate": ZLIB}
_ZLIB_MARK = 0x78  # Some clients send deflate without the frame that begins with this byte.


class BodyPace:
    """Raises RequestTimeout when a body stops coming, or when it comes too slowly."""

    def __init__(self, app: ASGIApp, timeout: float) -> None:
        """`timeout` are the seconds of silence that are allowed, and those before the average rate counts."""
        self._app = app
        self._timeout = timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        waited, length, whole = 0.0, 0, False

        async def receive_in_time() -> Message:
            nonlocal waited, length, whole
            if whole:
                return await receive()
            loop = asyncio.get_running_loop()
            start = loop.time()
            left = min(self._timeout, self._timeout + length / MIN_RATE - waited)
            try:
                async with asyncio.timeout(left):
                    message = await receive()
            except TimeoutError:
                raise RequestTimeout(
                    f"The body came too slowly: {length:,} bytes, then too little for too long."
                ) from None
            waited, length = waited + loop.time() - start, length + len(message.get("body", b""))
            whole = not message.get("more_body", False)
            return message

        await self._app(scope, receive_in_time if scope["type"] == "http" else receive, send)


class BodyLimit:
    """Refuses a body that is too large, by its announced length or, if none is announced, while it arrives."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        _check_length(_announced_length(scope), self._max_bytes)
        received = 0

        async def receive_counting() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            _check_length(received, self._max_bytes)
            return message

        return await self._app(scope, receive_counting, send)


class BodyDecoding:
    """Unpacks a body as its Content-Encoding says, while it arrives. What it becomes has the limit of any body."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        coding = Headers(scope=scope).get("content-encoding", "") if scope["type"] == "http" else ""
        if coding.strip().lower() in ("", "identity"):
            return await self._app(scope, receive, send)
        unpacker: Unpacker | None = None

        async def receive_unpacked() -> Message:
            nonlocal unpacker
            message = await receive()
            if message["type"] != "http.request" or (unpacker is not None and unpacker.ended):
                return message
            unpacker = unpacker or Unpacker(coding, self._max_bytes)
            body = unpacker.push(message.get("body", b""), last=not message.get("more_body", False))
            return {**message, "body": body}

        return await self._app(scope, receive_unpacked, send)


class Unpacker:
    """Unpacks one body piece by piece, and never makes more of it than the limit."""

    def __init__(self, coding: str, max_bytes: int) -> None:
        """Raises UnsupportedEncoding for anything but gzip and deflate."""
        name = coding.strip().lower()
        if name not in CODINGS:
            raise UnsupportedEncoding(
                f"The body has the Content-Encoding '{coding[:100]}'; this server reads gzip, deflate and plain bodies."
            )
        self.ended = False
        self._name = name
        self._max_bytes = max_bytes
        self._length = 0
        self._inflate = None if name == "deflate" else zlib.decompressobj(CODINGS[name])

    def push(self, data: bytes, last: bool) -> bytes:
        """Returns what more of the body is known. Raises InvalidRequest for damaged data, and BodyTooLarge."""
        if self._inflate is None and data:
            self._inflate = zlib.decompressobj(ZLIB if data[0] == _ZLIB_MARK else RAW)
        try:
            body = b"" if self._inflate is None else self._inflate.decompress(data, self._max_bytes - self._length + 1)
        except zlib.error as error:
            raise self._damaged(str(error)) from error
        self._length += len(body)
        _check_length(self._length, self._max_bytes)
        if self._inflate is not None and self._inflate.unused_data:
            raise self._damaged("more data follow its end")
        if last and (self._inflate is None or not self._inflate.eof):
            raise self._damaged("it ends too early")
        self.ended = last
        return body

    def _damaged(self, reason: str) -> InvalidRequest:
        return InvalidRequest(f"The body cannot be unpacked as its Content-Encoding, {self._name}, says: {reason}.")


def _check_length(length: int, most: int) -> None:
    if length > most:
        raise BodyTooLarge(f"The body is larger than this server takes ({most:,} bytes).")


def _announced_length(scope: Scope) -> int:
    """Returns what Content-Length says, or 0. A longer number is cut to 18 digits, which exceed any limit."""
    value = Headers(scope=scope).get("content-length", "")
    return int(value[:18]) if value.isascii() and value.isdigit() else 0
