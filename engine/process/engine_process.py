"""EngineProcess is one engine process as its parent sees it, which starts it, talks to it and ends it."""

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

from octavo.engine.api import Fatal, FromEngine, ToEngine
from octavo.engine.config import EngineConfig
from octavo.engine.process.death import Died, has_lost_its_memory, how_it_ended, past_mending
from octavo.engine.process.main import Build, main
from octavo.engine.stop_signals import stop_signals_blocked

WATCH_INTERVAL = 0.25  # seconds between two looks at a process that says nothing
EXIT_TIME = 0.5  # seconds to wait for the exit code of a process whose pipe has ended
ABORT_TIME = 2.0  # seconds that a process has to write its stacks and end after SIGABRT


class EngineProcess:
    """Runs an engine process, with a thread for each pipe. It is made, used and stopped on one event loop."""

    def __init__(self, config: EngineConfig, build: Build, deliver: Callable[[FromEngine | Died], None]) -> None:
        """Starts the process. `deliver` is called on the event loop with every message, and with Died at the end.

        Raises OSError when the system has no room for the process.
        """
        self._loop = asyncio.get_running_loop()
        self._deliver = deliver
        self._exit: asyncio.Future[str] = self._loop.create_future()
        self._ended_for: str | None = None  # why this object ended the process; None: it did not
        self._outbox: SimpleQueue[ToEngine | None] = SimpleQueue()
        context = get_context("spawn")
        request_reader, self._requests = context.Pipe(duplex=False)
        self._reports, report_writer = context.Pipe(duplex=False)
        # It is no daemon process: those may not have children, and an engine may start workers.
        self._process = context.Process(
            target=main, args=(request_reader, report_writer, config, build), name="octavo-engine"
        )
        with stop_signals_blocked():
            self._process.start()
        request_reader.close()  # Only the child has it now, so that its death is seen as end-of-file.
        report_writer.close()
        Thread(target=self._read, name="engine reader", daemon=True).start()
        Thread(target=_write, args=(self._requests, self._outbox), name="engine writer", daemon=True).start()

    @property
    def pid(self) -> int | None:
        return self._process.pid

    def send(self, message: ToEngine) -> None:
        """Sends a message without waiting; a process that is gone ignores it."""
        self._outbox.put(message)

    async def exited(self) -> str:
        """Waits until the process is gone; returns a clause that says how it ended."""
        await asyncio.wait([self._exit])  # Unlike `await self._exit`, it leaves the future alone when cancelled.
        return self._exit.result()

    async def stop(self, grace: float) -> None:
        """Closes the pipe, which ends the process even while it loads; kills it if that takes over `grace` seconds."""
        self._outbox.put(None)
        done, _ = await asyncio.wait([self._exit], timeout=grace)
        if not done:
            self._process.kill()
            await self.exited()

    async def abort(self, reason: str) -> None:
        """Ends the process at once, whatever it is doing, with the stacks of its threads on stderr.

        Died is delivered first, with this reason, since a device that hangs can hold the process for long.
        """
        assert self._process.pid is not None
        self._ended_for = reason
        self._deliver(Died(reason))
        with suppress(ProcessLookupError):
            os.kill(self._process.pid, signal.SIGABRT)
        await asyncio.wait([self._exit], timeout=ABORT_TIME)
        self._process.kill()

    def _read(self) -> None:
        """Passes messages to the event loop, waking it once a step, and reports the end of the process. A thread's."""
        try:
            while not self._is_dying():
                self._loop.call_soon_threadsafe(self._deliver, self._reports.recv())
        except (EOFError, OSError):
            pass
        finally:
            # The news does not wait for the exit, over which the driver of a device can take seconds.
            self._process.join(EXIT_TIME)
            self._tell_if_past_mending()
            self._loop.call_soon_threadsafe(self._deliver, Died(self._how_it_ended()))
            self._process.kill()
            self._process.join()
            self._tell_if_past_mending()  # The exit code may not have been known before.
            self._reports.close()
            self._outbox.put(None)
            self._loop.call_soon_threadsafe(self._exit.set_result, self._how_it_ended())

    def _tell_if_past_mending(self) -> None:
        """Delivers Fatal, which a process that a signal ends cannot send itself."""
        if (sentence := past_mending(self._process.exitcode)) is not None:
            self._loop.call_soon_threadsafe(self._deliver, Fatal(sentence))

    def _how_it_ended(self) -> str:
        return self._ended_for or how_it_ended(self._process.exitcode)

    def _is_dying(self) -> bool:
        """Waits for news: returns False for a message or the end of the pipe, True if the process ends without."""
        while not self._reports.poll(WATCH_INTERVAL):
            if has_lost_its_memory(self._process.pid):
                return not self._reports.poll()  # Its last message may have come between the two questions.
        return False


def _write(requests: "Connection[ToEngine, Any]", outbox: "SimpleQueue[ToEngine | None]") -> None:
    """Sends until it is told to stop or the process is gone; closing its end stops the process. A thread's."""
    try:
        while (message := outbox.get()) is not None:
            requests.send(message)
    except OSError:
        pass
    finally:
        requests.close()
