"""Watchdog finds out that an engine hangs in a step: somebody waits for it, and it says nothing for too long."""

from asyncio import sleep
from collections.abc import Callable

LOOK_INTERVAL = 1  # seconds


class Watchdog:
    """Looks once a second whether anybody waits for an engine that is silent.

    An engine that works says something at the end of each step. Without work it is silent, but nobody waits for it. The
    watchdog counts its looks and does not read the clock: a machine that slept has not waited.
    """

    def __init__(self, timeout: int, is_awaited: Callable[[], bool]) -> None:
        """Takes a timeout in seconds; with 0 no engine ever counts as hung."""
        self._timeout = timeout
        self._is_awaited = is_awaited
        self._silence = 0  # seconds

    def hear(self) -> None:
        """Notes that the engine has said something."""
        self._silence = 0

    async def hung(self) -> None:
        """Returns when somebody has waited for a silent engine for longer than the timeout."""
        self._silence = 0
        while not 0 < self._timeout < self._silence:
            await sleep(LOOK_INTERVAL)
            self._silence = self._silence + LOOK_INTERVAL if self._is_awaited() else 0
