"""Collector keeps the outputs of requests that were submitted together, merged while their reader lags behind."""

import asyncio
from collections.abc import Callable, Iterable

from octavo.engine.api import Output, Routes


class Collector:
    """A Collector is the Generation that ProcessClient.submit returns. It lives on one event loop.

    At most one Output per request is kept: those that arrive before the reader comes back become one.
    """

    def __init__(self, request_ids: Iterable[str], abandon: Callable[[str], None]) -> None:
        """Expects outputs of these requests. `abandon` is told the id of each that is given up before its end."""
        self._abandon = abandon
        self._running = set(request_ids)  # requests of which no terminal output has arrived
        self._unread: dict[str, Output] = {}  # in order of arrival
        self._changed = asyncio.Event()

    def put(self, output: Output) -> None:
        """Takes the next output of a request; one that was given up or has ended is dropped."""
        if output.id not in self._running:
            return
        if output.finish_reason is not None:
            self._running.remove(output.id)
        unread = self._unread.get(output.id)
        self._unread[output.id] = output if unread is None else merge(unread, output)
        self._changed.set()

    def __aiter__(self) -> "Collector":
        return self

    async def __anext__(self) -> Output:
        while not self._unread:
            if not self._running:
                raise StopAsyncIteration
            self._changed.clear()
            await self._changed.wait()
        return self._unread.pop(next(iter(self._unread)))

    def abort(self, request_id: str) -> None:
        """Stops one of the requests; no further output of it is delivered."""
        self._unread.pop(request_id, None)
        if request_id in self._running:
            self._running.remove(request_id)
            self._abandon(request_id)
        self._changed.set()

    def close(self) -> None:
        """Aborts whatever has not ended; may be called again."""
        for request_id in tuple(self._running):
            self.abort(request_id)
        self._unread.clear()


def merge(first: Output, second: Output) -> Output:
    """Returns two consecutive outputs of one request as one."""
    return Output(
        id=first.id,
        token_ids=first.token_ids + second.token_ids,
        logprobs=first.logprobs + second.logprobs,
        cached_tokens=max(first.cached_tokens, second.cached_tokens),
        finish_reason=second.finish_reason,
        error=second.error,
        prompt_logprobs=first.prompt_logprobs + second.prompt_logprobs,
        routes=_joined(first.routes, second.routes),
    )


def _joined(first: Routes | None, second: Routes | None) -> Routes | None:
    """Returns the routes of consecutive positions as one."""
    if first is None or second is None:
        return first or second
    ids, weights = first.ids + second.ids, first.weights + second.weights
    return Routes(first.start, first.count + second.count, ids, weights)
