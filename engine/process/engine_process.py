"""EngineProcess: one life of an engine process as the parent sees it."""

import asyncio
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from queue import SimpleQueue
from threading import Thread
from typing import Any

from octavo.engine.api import FromEngine, ToEngine
from octavo.engine.config import EngineConfig
from octavo.engine.process.death import Died, has_lost_its_memory, how_it_ended
from octavo.engine.process.main import Build, main
from octavo.engine.process.stop_signals import start_with_stop_signals_blocked

STOP_GRACE = 2.0  # seconds that a process has to end once its pipe is closed
WATCH_INTERVAL = 0.25  # seconds between two looks at a process that says nothing
EXIT_TIME = 0.5  # seconds to wait for the exit code of a process whose pipe has ended


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
