"""Sends server-sent events, and stops work when the client that waits for it leaves."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from octavo.server.http.wire import KEEP_ALIVE

T = TypeVar("T")


class ClientLeft(Exception):
    """Says that nobody waits for the answer any more."""


async def until_disconnect(work: Coroutine[Any, Any, T], receive: Receive) -> T:
    """Returns the result of `work`. If the client leaves first, cancels it and raises ClientLeft.

    The request's body must have been read.
    """
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_disconnect(receive))
    try:
        await asyncio.wait((task, watcher), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientLeft
        return task.result()
    finally:
        await _cancel(watcher)
        await _cancel(task)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _cancel(task: asyncio.Future[Any]) -> None:
    """Ends a task and waits until it has cleaned up, also while the caller is being cancelled."""
    if not task.done():
        task.cancel()
        await asyncio.wait((task,))


async def keep_alive(events: AsyncGenerator[bytes, None], seconds: float) -> AsyncGenerator[bytes, None]:
    """Yields the events and, after each such time without one, a comment that keeps proxies from hanging up."""
    pending = asyncio.ensure_future(_next(events))
    try:
        while True:
            await asyncio.wait((pending,), timeout=seconds)
            if not pending.done():
                yield KEEP_ALIVE
            elif (item := pending.result()) is None:
                return
            else:
                yield item
                pending = asyncio.ensure_future(_next(events))
    finally:
        await _cancel(pending)
        await events.aclose()


async def _next(events: AsyncIterator[bytes]) -> bytes | None:
    return await anext(events, None)


class Sliced(Response):
    """Sends JSON in slices, each when the client has taken the one before: it may have megabytes."""

    media_type = "application/json"
    SLICE = 64 * 1024  # bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for start in range(0, len(self.body), self.SLICE):
            more = start + self.SLICE < len(self.body)
            await send({"type": "http.response.body", "body": self.body[start : start + self.SLICE], "more_body": more})


class EventStream(Response):
    """Sends its headers at once, then the events. It calls `close` exactly once, however the stream ends."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None], seconds: float, close: Callable[[], None]) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._events = events
        self._seconds = seconds
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await until_disconnect(self._send_events(send), receive)
        finally:
            self._close()

    async def _send_events(self, send: Send) -> None:
        async with aclosing(keep_alive(self._events, self._seconds)) as events:
            async for event in events:
                await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
