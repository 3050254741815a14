"""Supervisor keeps an engine running: it starts a process, starts another when that dies or hangs, or gives up."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from octavo.engine.api import Fatal, FinishReason, FromEngine, Ready, StepOutputs, ToEngine
from octavo.engine.config import EngineConfig
from octavo.engine.process.death import Died
from octavo.engine.process.engine_process import EngineProcess
from octavo.engine.process.main import Build
from octavo.engine.process.watchdog import Watchdog
from octavo.engine.startup import machine
from octavo.engine.startup.shortage import shortage

STOP_GRACE = 2.0  # seconds that a process has to end once its pipe is closed
FINISHED = (FinishReason.STOP, FinishReason.LENGTH)  # reasons with which a request ends well


@dataclass(slots=True)
class Life:
    """Holds what is known of one life: from the start of a process to its end."""

    ready_at: float | None = None  # in the event loop's time; None: not ready yet
    has_finished_a_request: bool = False
    fatal: str | None = None  # why starting again would not help; None: it may
    denied: str | None = None  # what the machine denied, so that there was no process

    def hear(self, message: FromEngine | Died, now: float) -> None:
        """Notes what a message says about this life."""
        match message:
            case Ready():
                self.ready_at = now
            case Fatal():
                self.fatal = message.message
            case StepOutputs():
                self.has_finished_a_request |= any(output.finish_reason in FINISHED for output in message.outputs)


@dataclass(frozen=True, slots=True)
class Restarts:
    """Says how often and how soon an engine that died is started again. Times are in seconds."""

    attempts: int = 5  # in a row; a life that went well starts the count anew
    first_delay: float = 0.5  # doubles with every attempt
    longest_delay: float = 30.0
    well_after: float = 10.0  # a life went well that lasted this long after Ready, or finished a request

    def delay(self, attempt: int) -> float:
        """Returns the seconds to wait before the attempt of this index, counted from 0."""
        return min(self.first_delay * 2.0**attempt, self.longest_delay)

    def went_well(self, life: Life, now: float) -> bool:
        """Returns whether a life that ends now was a good one, after which the attempts are counted anew."""
        if life.ready_at is None:
            return False
        return life.has_finished_a_request or now - life.ready_at > self.well_after


class Supervisor:
    """Runs one life of an engine after another."""

    def __init__(
        self,
        config: EngineConfig,
        build: Build,
        restarts: Restarts,
        deliver: Callable[[FromEngine | Died], None],
        is_awaited: Callable[[], bool],
    ) -> None:
        """Starts nothing yet.

        `deliver` is called on the event loop with every message, and at the end of each life with Died, once or more
        often. `is_awaited` says whether a request is open: only then does a silent engine hang.
        """
        self._config = config
        self._build = build
        self._restarts = restarts
        self._deliver = deliver
        self._watchdog = Watchdog(config.watchdog_timeout, is_awaited)
        self._process: EngineProcess | None = None

    @property
    def pid(self) -> int | None:
        """Returns the id of the process that runs now; None between two lives."""
        return self._process.pid if self._process is not None else None

    def send(self, message: ToEngine) -> None:
        """Sends a message without waiting; without a process it is lost, as is every request of a dead one."""
        if self._process is not None:
            self._process.send(message)

    async def run(self) -> str:
        """Returns why it gave up: a sentence of the engine's, or a clause. Cancelling it ends the process."""
        attempt = 0
        was_ready = False  # Before it is, what the machine denies is the same the next time.
        while True:
            life = Life()
            reason = await self._live(life)
            was_ready |= life.ready_at is not None
            if life.denied is not None and not was_ready:
                return life.denied
            self._deliver(Died(reason))  # The exit code may not have been known when Died was delivered before.
            if life.fatal is not None:
                return life.fatal
            if not was_ready and (limit := machine.limit_in_force()) is not None:
                return f"{reason} while it started, and {limit}: raise the limit, or remove it"
            if self._restarts.went_well(life, asyncio.get_running_loop().time()):
                attempt = 0
            if attempt == self._restarts.attempts:
                return f"{reason}, and {attempt} restarts in a row have failed"
            await asyncio.sleep(self._restarts.delay(attempt))
            attempt += 1

    async def _live(self, life: Life) -> str:
        """Starts a process and waits for its end; returns a clause that says how it ended."""

        def receive(message: FromEngine | Died) -> None:
            self._watchdog.hear()
            life.hear(message, asyncio.get_running_loop().time())
            self._deliver(message)

        try:
            self._process = EngineProcess(self._config, self._build, receive)
        except OSError as error:
            life.denied = shortage(error)
            return f"the engine process could not be started: {error}"
        watch = asyncio.create_task(self._abort_when_hung(self._process), name="engine watchdog")
        try:
            return await self._process.exited()
        finally:
            watch.cancel()
            try:
                await self._process.stop(STOP_GRACE)
            finally:  # This task may be cancelled only now, when the process is gone already.
                self._process = None

    async def _abort_when_hung(self, process: EngineProcess) -> None:
        await self._watchdog.hung()
        limit = f"{self._config.watchdog_timeout} s (--watchdog-timeout)"
        await process.abort(f"a step of the engine has taken more than {limit}, and its process was ended")
