"""The helper reads large bodies in a process of its own, which is killed if its client leaves or it takes too much."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from octavo.engine.child import Child, Died, NotStarted, TooSlow
from octavo.server.config import ServerConfig
from octavo.server.generation.helper_process import Crashed, Question, Reply, answers
from octavo.server.http.errors import ApiError, BodyTooLarge, InvalidRequest, ServiceUnavailable

READ_SECONDS = 30.0  # time to read one body
IDLE_SECONDS = 10.0  # the process ends after so long without a body
GROWN = 48 * 1024 * 1024  # bytes; a process that has grown by more is not used again
NOTICE = 0.01  # seconds in which it is noticed that a client has left, before any work begins


class Helper:
    """A Helper lives on one event loop. Its process starts with the first body, and reads one body at a time."""

    def __init__(self, directory: Path, config: ServerConfig) -> None:
        self._directory, self._config = directory, config
        self._turn = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, "large bodies")
        self._child: Child | None = None
        self._retirement: asyncio.TimerHandle | None = None

    async def run(self, prepare: Callable[..., Any], body: bytes, arguments: tuple[Any, ...]) -> Any:
        """Returns what `prepare` returns in the process. Raises what it raises there, or ApiError.

        Cancelling it kills the process, so that nothing is done for a client that has left.
        """
        async with self._turn:
            await asyncio.sleep(NOTICE)
            if self._retirement is not None:
                self._retirement.cancel()
            loop, given_up = asyncio.get_running_loop(), threading.Event()
            try:
                reply = await loop.run_in_executor(self._thread, self._ask, (prepare, body, arguments), given_up)
            except BaseException:
                given_up.set()
                self._end()
                raise
            if reply.grown > GROWN:
                self._end()
            else:
                self._retirement = loop.call_later(IDLE_SECONDS, self._end)
        return _value(reply)

    def _ask(self, question: Question, given_up: threading.Event) -> Reply:
        """Runs in the thread. Raises ApiError."""
        child = self._child
        if child is None or not child.is_alive():  # Somebody may have killed it while it was idle.
            child = self._child = Child(answers, self._directory, self._config)
        if given_up.is_set():  # It was started too late for `run` to see it.
            child.kill()
        try:
            reply: Reply = child.ask(question, READ_SECONDS)
            return reply
        except NotStarted:
            raise ServiceUnavailable("The process that reads large bodies did not start; try again soon.") from None
        except TooSlow:
            raise InvalidRequest(f"The body takes more than {READ_SECONDS:g} seconds to read; shorten it.") from None
        except Died:
            raise BodyTooLarge("The body takes too much memory to read; shorten it.") from None

    def _end(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.kill()


def _value(reply: Reply) -> Any:
    if isinstance(reply.value, ApiError):
        raise reply.value
    if isinstance(reply.value, Crashed):
        raise RuntimeError(f"a large body could not be read\n{reply.value.traceback}")
    return reply.value
