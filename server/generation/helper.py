"""The helper reads large bodies in a process of its own, which is killed if its client leaves or it takes too much."""

import asyncio
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context, resource_tracker
from pathlib import Path
from typing import Any

from octavo.server.config import ServerConfig
from octavo.server.generation.helper_process import Crashed, Reply, main
from octavo.server.http.errors import ApiError, BodyTooLarge, InvalidRequest, ServiceUnavailable
from octavo.server.text.patience import STANDS_STILL, bound_waits

START_SECONDS = 60.0  # time for the process to read the tokenizer
READ_SECONDS = 30.0  # time to read one body
IDLE_SECONDS = 10.0  # the process ends after so long without a body
GROWN = 48 * 1024 * 1024  # bytes; a process that has grown by more is not used again
NOTICE = 0.01  # seconds in which it is noticed that a client has left, before any work begins
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)

Question = tuple[Callable[..., Any], tuple[Any, ...]]  # a function of a module, and its further arguments


class Helper:
    """A Helper lives on one event loop. Its process starts with the first body, and reads one body at a time."""

    def __init__(self, directory: Path, config: ServerConfig) -> None:
        self._directory, self._config = directory, config
        self._turn = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, "large bodies")
        self._child: _Child | None = None
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
                reply = await loop.run_in_executor(self._thread, self._ask, (prepare, arguments), body, given_up)
            except BaseException:
                given_up.set()
                self._end()
                raise
            if reply.grown > GROWN:
                self._end()
            else:
                self._retirement = loop.call_later(IDLE_SECONDS, self._end)
        return _value(reply)

    def _ask(self, question: Question, body: bytes, given_up: threading.Event) -> Reply:
        """Runs in the thread."""
        child = self._child
        if child is None or not child.is_alive():  # Somebody may have killed it while it was idle.
            child = self._child = _Child(self._directory, self._config)
        if given_up.is_set():  # It was started too late for `run` to see it.
            child.kill()
        return child.ask(question, body)

    def _end(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.kill()


class _Child:
    """A _Child is the process as its parent sees it."""

    def __init__(self, directory: Path, config: ServerConfig) -> None:
        context = get_context("spawn")
        self._connection, theirs = context.Pipe()
        bound_waits(self._connection, READ_SECONDS)
        self._process = context.Process(
            target=main, args=(theirs, directory, config), name="octavo-bodies", daemon=True
        )
        resource_tracker.ensure_running()  # It would unblock the signals if it were started below.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # While it imports it would die of Ctrl-C.
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        theirs.close()  # Only the child has it now, so that its death is seen as end-of-file.
        self._is_ready = False

    def ask(self, question: Question, body: bytes) -> Reply:
        """Returns the answer. Raises ApiError."""
        try:
            self._wait_until_ready()
        except (EOFError, OSError, TimeoutError):
            raise ServiceUnavailable("The process that reads large bodies did not start; try again soon.") from None
        try:
            self._connection.send(question)
            self._connection.send_bytes(body)
            return self._receive(READ_SECONDS)
        except (TimeoutError, STANDS_STILL):
            raise InvalidRequest(f"The body takes more than {READ_SECONDS:g} seconds to read; shorten it.") from None
        except (EOFError, OSError):
            raise BodyTooLarge("The body takes too much memory to read; shorten it.") from None

    def _wait_until_ready(self) -> None:
        if not self._is_ready:
            self._receive(START_SECONDS)
            self._is_ready = True

    def _receive(self, seconds: float) -> Reply:
        if not self._connection.poll(seconds):
            raise TimeoutError
        reply = self._connection.recv()
        assert isinstance(reply, Reply)
        return reply

    def is_alive(self) -> bool:
        return self._process.is_alive()

    def kill(self) -> None:
        self._process.kill()
        self._process.join()


def _value(reply: Reply) -> Any:
    if isinstance(reply.value, ApiError):
        raise reply.value
    if isinstance(reply.value, Crashed):
        raise RuntimeError(f"a large body could not be read\n{reply.value.traceback}")
    return reply.value
