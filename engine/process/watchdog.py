"""Watchdog: an engine that is waited for, and says nothing for too long, hangs in a step."""

from asyncio import sleep
from collections.abc import Callable

LOOK_INTERVAL = 1  # seconds


class Watchdog:
    """Looks once a second whether anybody waits for an engine that is silent.

    At work, an engine says something at the end of each step; without, it is silent and nobody waits for it. What is
    counted are looks, not the clock: a machine that slept, or a server that was suspended, has not waited.
    """

    def __init__(self, timeout: int, is_awaited: Callable[[], bool]) -> None:
        """`timeout` is in seconds; 0 is patience for ever."""
        self._timeout = timeout
        self._is_awaited = is_awaited
        self._silence = 0  # seconds

    def hear(self) -> None:
        """The engine has said something."""
        self._silence = 0

    async def hung(self) -> None:
        """Returns when the engine has been waited for in silence for longer than the timeout."""
        self._silence = 0
        while not 0 < self._timeout < self._silence:
            await sleep(LOOK_INTERVAL)
            self._silence = self._silence + LOOK_INTERVAL if self._is_awaited() else 0
