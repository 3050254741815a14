"""Keeps an engine process running: one life of it as the parent sees it, and when the next one begins."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from octavo.engine.api import Fatal, FinishReason, FromEngine, Ready, StepOutputs, ToEngine
from octavo.engine.config import EngineConfig
from octavo.engine.process.death import Died
from octavo.engine.process.engine_process import EngineProcess
from octavo.engine.process.main import Build
from octavo.engine.process.watchdog import Watchdog

STOP_GRACE = 2.0  # seconds that a process has to end once its pipe is closed


@dataclass(frozen=True, slots=True)
class Restarts:
    """When an engine that died is started again. Times are in seconds."""

    attempts: int = 5  # in a row; a life that went well starts the count anew
    first_delay: float = 0.5  # doubles with every attempt
    longest_delay: float = 30.0
    well_after: float = 10.0  # a life went well that lasted this long after Ready, or finished a request

    def delay(self, attempt: int) -> float:
        """Seconds to wait before the attempt of this index, counted from 0."""
        return min(self.first_delay * 2.0**attempt, self.longest_delay)


class Supervisor:
    """Starts the process, starts it again when it dies or hangs, and gives up when that does not help.

    `deliver` is called on the event loop with every message, and with Died, more than once, at the end of each life.
    """

    def __init__(
        self,
        config: EngineConfig,
        build: Build,
        restarts: Restarts,
        deliver: Callable[[FromEngine | Died], None],
        is_awaited: Callable[[], bool],
    ) -> None:
        """`is_awaited` says whether a request is open: only then does a silent engine hang."""
        self._config = config
        self._build = build
        self._restarts = restarts
        self._deliver = deliver
        self._watchdog = Watchdog(config.watchdog_timeout, is_awaited)
        self._process: EngineProcess | None = None
        self._fatal: str | None = None
        self._ready_at: float | None = None  # the event loop's time; None: not ready in this life
        self._finished_any = False  # whether a request ended well in this life

    @property
    def pid(self) -> int | None:
        """The process of the moment; None between two."""
        return self._process.pid if self._process is not None else None

    def send(self, message: ToEngine) -> None:
        """Never blocks; without a process the message is lost, as is every request of a dead one."""
        if self._process is not None:
            self._process.send(message)

    async def run(self) -> str:
        """Returns why it gave up. Cancelling it ends the process."""
        attempt = 0
        while True:
            reason = await self._live()
            self._deliver(Died(reason))  # once more: the exit code may not have been known at first
            if self._fatal is not None:
                return self._fatal
            if self._went_well():
                attempt = 0
            if attempt == self._restarts.attempts:
                return f"{reason}, and {attempt} restarts in a row have failed"
            await asyncio.sleep(self._restarts.delay(attempt))
            attempt += 1

    async def _live(self) -> str:
        self._ready_at, self._finished_any = None, False
        try:
            self._process = EngineProcess(self._config, self._build, self._receive)
        except OSError as error:
            return f"the engine process could not be started: {error}"
        watch = asyncio.create_task(self._end_when_hung(self._process), name="engine watchdog")
        try:
            return await self._process.exited()
        finally:
            watch.cancel()
            try:
                await self._process.stop(STOP_GRACE)
            finally:  # also if this task is cancelled only now, when the process is gone already
                self._process = None

    async def _end_when_hung(self, process: EngineProcess) -> None:
        await self._watchdog.hung()
        limit = f"{self._config.watchdog_timeout} s (--watchdog-timeout)"
        await process.end(f"a step of the engine has taken more than {limit}, and its process was ended")

    def _receive(self, message: FromEngine | Died) -> None:
        self._watchdog.hear()
        match message:
            case Ready():
                self._ready_at = asyncio.get_running_loop().time()
            case Fatal():
                self._fatal = message.message
            case StepOutputs():
                self._finished_any |= any(
                    o.finish_reason in (FinishReason.STOP, FinishReason.LENGTH) for o in message.outputs
                )
        self._deliver(message)

    def _went_well(self) -> bool:
        if self._ready_at is None:
            return False
        return self._finished_any or asyncio.get_running_loop().time() - self._ready_at > self._restarts.well_after
