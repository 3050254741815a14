"""Shares out the processes that render templates of clients: callers take turns, and none has two at a time."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TypeVar

from octavo.server.http.errors import TooManyRequests
from octavo.server.text.template_process import TemplateProcess

T = TypeVar("T")

PROCESSES = 3  # templates that are rendered at once, each for another caller
MAX_WAITING = 64  # requests that wait for a process
PATIENCE = 10.0  # seconds that a request waits at most


class ClientTemplates:
    """Lives on one event loop. It has threads of its own, so that nobody else waits for a slow template."""

    def __init__(self, special_tokens: Mapping[str, str]) -> None:
        """`special_tokens` are those that templates know by name. Processes start when they are needed."""
        self._special_tokens = special_tokens
        self._threads = ThreadPoolExecutor(PROCESSES, "templates of clients")
        self._idle: list[TemplateProcess] = []
        self._served: set[str] = set()  # callers that have a process
        self._waiting: list[tuple[str, asyncio.Future[None]]] = []  # first come, first served

    async def run(self, caller: str, work: Callable[[TemplateProcess], T]) -> T:
        """Returns work(process), which runs in a thread. Raises what it raises, or TooManyRequests.

        Cancelling it kills the process, so that nothing is done for a client that has left.
        """
        async with self._turn(caller):
            process = self._idle.pop() if self._idle else TemplateProcess(self._special_tokens)
            try:
                result = await asyncio.get_running_loop().run_in_executor(self._threads, work, process)
            except asyncio.CancelledError:
                process.give_up()
                raise
            except BaseException:
                self._idle.append(process)
                raise
            self._idle.append(process)
            return result

    @asynccontextmanager
    async def _turn(self, caller: str) -> AsyncIterator[None]:
        """Waits until the caller may have a process, and lets the next one have it when the block ends."""
        if len(self._served) == PROCESSES or caller in self._served:
            await self._wait(caller)
        else:
            self._served.add(caller)
        try:
            yield
        finally:
            self._served.remove(caller)
            self._call_next()

    async def _wait(self, caller: str) -> None:
        if len(self._waiting) == MAX_WAITING:
            raise TooManyRequests("Too many templates of clients are waiting to be rendered; try again later.")
        place = caller, asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            async with asyncio.timeout(PATIENCE):
                await place[1]
        except BaseException as error:
            if place in self._waiting:
                self._waiting.remove(place)
            else:  # Its turn came when it was given up.
                self._served.remove(caller)
                self._call_next()
            if isinstance(error, TimeoutError):
                message = "Other templates of clients took too long to be rendered; try again later."
                raise TooManyRequests(message) from None
            raise

    def _call_next(self) -> None:
        """Calls the first in the queue who has no process already."""
        for place in self._waiting:
            caller, turn = place
            if caller not in self._served and not turn.done():
                self._served.add(caller)
                self._waiting.remove(place)
                turn.set_result(None)
                return
