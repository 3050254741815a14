"""Keeps an engine process running: one life of it as the parent sees it, and when the next one begins."""

import asyncio
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from queue import SimpleQueue
from threading import Thread
from typing import Any

from octavo.engine.api import Fatal, FinishReason, FromEngine, Ready, StepOutputs, ToEngine
from octavo.engine.config import EngineConfig
from octavo.engine.process.death import Died, has_lost_its_memory, how_it_ended
from octavo.engine.process.main import Build, main
from octavo.engine.process.stop_signals import start_with_stop_signals_blocked
from octavo.engine.process.watchdog import Watchdog

STOP_GRACE = 2.0  # seconds that a process has to end once its pipe is closed
WATCH_INTERVAL = 0.25  # seconds between two looks at a process that says nothing
EXIT_TIME = 0.5  # seconds to wait for the exit code of a process whose pipe has ended


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

    async def _end_when_hung(self, process: "EngineProcess") -> None:
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


class EngineProcess:
    """A started engine process with a thread for each direction; must be made, used and stopped on one event loop.

    `deliver` is called on that loop with every message, then with Died.
    """

    def __init__(self, config: EngineConfig, build: Build, deliver: Callable[[FromEngine | Died], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._deliver = deliver
        self._exit: asyncio.Future[str] = self._loop.create_future()
        self._ended_for: str | None = None  # why we ended the process, if we did
        self._outbox: SimpleQueue[ToEngine | None] = SimpleQueue()
        context = get_context("spawn")
        request_reader, self._requests = context.Pipe(duplex=False)
        self._reports, report_writer = context.Pipe(duplex=False)
        # Not a daemon process: those may not have children, and an engine may start workers.
        self._process = context.Process(
            target=main, args=(request_reader, report_writer, config, build), name="octavo-engine"
        )
        start_with_stop_signals_blocked(self._process)
        request_reader.close()  # now the child's alone, so that its death is seen as end-of-file
        report_writer.close()
        Thread(target=self._read, name="engine reader", daemon=True).start()
        Thread(target=_write, args=(self._requests, self._outbox), name="engine writer", daemon=True).start()

    @property
    def pid(self) -> int | None:
        return self._process.pid

    def send(self, message: ToEngine) -> None:
        """Never blocks; a process that is gone ignores it."""
        self._outbox.put(message)

    async def exited(self) -> str:
        """Waits until the process is gone; a clause that says how it ended."""
        await asyncio.wait([self._exit])  # unlike awaiting the future, leaves it alone when this task is cancelled
        return self._exit.result()

    async def stop(self, grace: float) -> None:
        """Closes the pipe, which ends the process even while it loads; kills it if that takes over `grace` seconds."""
        self._outbox.put(None)
        done, _ = await asyncio.wait([self._exit], timeout=grace)
        if not done:
            self._process.kill()
            await self.exited()

    async def end(self, reason: str) -> None:
        """Ends the process whatever it is doing, with the stacks of its threads on stderr; Died gives this reason.

        It does so at once: a device that hangs can hold the process for long.
        """
        assert self._process.pid is not None
        self._ended_for = reason
        self._deliver(Died(reason))
        with suppress(ProcessLookupError):
            os.kill(self._process.pid, signal.SIGABRT)
        await asyncio.wait([self._exit], timeout=STOP_GRACE)
        self._process.kill()

    def _read(self) -> None:
        """Thread: passes messages to the event loop, waking it once a step, and reports the end of the process."""
        try:
            while not self._is_dying():
                self._loop.call_soon_threadsafe(self._deliver, self._reports.recv())
        except (EOFError, OSError):
            pass
        finally:
            # The news does not wait for long: a device's driver can take seconds over the exit of a process.
            self._process.join(EXIT_TIME)
            self._loop.call_soon_threadsafe(self._deliver, Died(self._how_it_ended()))
            self._process.kill()
            self._process.join()
            self._reports.close()
            self._outbox.put(None)
            self._loop.call_soon_threadsafe(self._exit.set_result, self._how_it_ended())

    def _how_it_ended(self) -> str:
        return self._ended_for or how_it_ended(self._process.exitcode)

    def _is_dying(self) -> bool:
        """False as soon as there is a message or the end of the pipe; True when the process ends without either."""
        while not self._reports.poll(WATCH_INTERVAL):
            if has_lost_its_memory(self._process.pid):
                return True
        return False


def _write(requests: "Connection[ToEngine, Any]", outbox: "SimpleQueue[ToEngine | None]") -> None:
    """Thread: sends until told to stop or the process is gone; closing its end is what stops the process."""
    try:
        while (message := outbox.get()) is not None:
            requests.send(message)
    except OSError:
        pass
    finally:
        requests.close()
