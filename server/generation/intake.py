"""The intake receives bodies. Large ones take turns, so that their memory has a bound however many come at once."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest

from octavo.server.http.errors import RequestTimeout, TooManyRequests
from octavo.server.http.streaming import ClientLeft

SMALL = 128 * 1024  # bytes; a smaller body never waits
HELD = 32 * 1024 * 1024  # bytes of large bodies that are received or read at once
MAX_WAITING = 64  # large bodies that wait; what has come of each stays in the socket
MOST_UNPACKED = 1032  # bytes that one byte of gzip or deflate can become
PATIENCE = 30.0  # seconds that a body waits at most
HURRY = 10.0  # seconds in which a body must come once others wait for its turn to end


@dataclass(slots=True, eq=False)
class _Turn:
    held: int = 0  # bytes that the body may have
    pace: asyncio.Timeout | None = None  # ends the receiving


class Intake:
    """An Intake lives on one event loop. A body that waits is not received: its client's connection stands still."""

    def __init__(self, max_body_bytes: int, held: int = HELD) -> None:
        self._largest = max_body_bytes
        self._free = max(held, max_body_bytes)
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()  # first come, first served
        self._turns: list[_Turn] = []  # of bodies that are coming

    @asynccontextmanager
    async def received(self, http: HttpRequest) -> AsyncIterator[bytes]:
        """Yields the whole body, and counts it until the block ends.

        Raises ClientLeft, TooManyRequests after a long wait, and RequestTimeout when it comes slowly and others wait.
        """
        turn = _Turn()
        try:
            yield await self._receive(http, turn)
        except ClientDisconnect:
            raise ClientLeft from None
        finally:
            self._give_back(turn.held)

    async def _receive(self, http: HttpRequest, turn: "_Turn") -> bytes:
        chunks, length = [], 0
        if (size := _announced(http.headers, self._largest)) > SMALL:
            turn.held = await self._take(size)
        self._turns.append(turn)
        try:
            async with asyncio.timeout(None) as turn.pace:
                self._hurry()
                async for chunk in http.stream():
                    chunks.append(chunk)
                    length += len(chunk)
                    if length > SMALL and not turn.held:  # Its length was not announced.
                        turn.held = await self._take(self._largest)
                        self._hurry()
        except TimeoutError:
            raise RequestTimeout(
                f"The body came too slowly while others waited for their turn: {length:,} bytes."
            ) from None
        finally:
            self._turns.remove(turn)
        return b"".join(chunks)

    def _hurry(self) -> None:
        """Sets an end to those who have had their turn and are still sending, if others wait for it."""
        soon = asyncio.get_running_loop().time() + HURRY
        for turn in self._turns if self._waiting else ():
            if turn.held and turn.pace is not None and turn.pace.when() is None:
                turn.pace.reschedule(soon)

    async def _take(self, size: int) -> int:
        """Waits until so many bytes may be held; returns their number."""
        if not self._waiting and size <= self._free:
            self._free -= size
            return size
        if len(self._waiting) >= MAX_WAITING:
            raise TooManyRequests("Too many large bodies are waiting to be read; try again later.")
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((size, turn))
        self._hurry()
        try:
            async with asyncio.timeout(PATIENCE):
                await turn
        except BaseException as error:
            self._withdraw(size, turn)
            if isinstance(error, TimeoutError):
                raise TooManyRequests("Other large bodies were read for too long; try again later.") from None
            raise
        return size

    def _withdraw(self, size: int, turn: asyncio.Future[None]) -> None:
        """Undoes a wait that was given up, perhaps just after its turn had come."""
        if turn.done() and not turn.cancelled():
            self._give_back(size)
            return
        with suppress(ValueError):  # It may have been passed over already.
            self._waiting.remove((size, turn))
        self._give_back(0)

    def _give_back(self, size: int) -> None:
        self._free += size
        while self._waiting and (self._waiting[0][1].cancelled() or self._waiting[0][0] <= self._free):
            wanted, turn = self._waiting.popleft()
            if not turn.cancelled():
                self._free -= wanted
                turn.set_result(None)


async def discard(http: HttpRequest) -> None:
    """Receives a body that nobody will read: many clients look for an answer only when they have sent everything.

    A client that asks first (Expect: 100-continue) is answered instead.
    """
    if "expect" in http.headers:
        return
    with suppress(ClientDisconnect):
        async for _ in http.stream():
            pass


def _announced(headers: Headers, largest: int) -> int:
    """Returns the bytes that a body takes at most; 0 if that is not known. BodyLimit has refused what is too large."""
    length, packed = headers.get("content-length", ""), headers.get("content-encoding", "identity") != "identity"
    if not (length.isascii() and length.isdigit()):
        return largest if packed else 0
    return min(int(length[:18]) * (MOST_UNPACKED if packed else 1), largest)
