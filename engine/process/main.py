"""Runs an engine in its own process: it takes requests, sends one message a step, and ends with its parent.

    parent                         this process
    ProcessClient  -- requests ->  reader thread -> inbox  -> loop: add, abort, step
                   <- reports  --  writer thread <- outbox <-

The parent names only `main`. The pipes have no address, so nobody else can put a pickle into them. End-of-file tells
each side that the other one is dead.
"""

import faulthandler
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.connection import Connection
from queue import Empty, SimpleQueue
from threading import Thread
from time import monotonic
from typing import Any, Protocol

from octavo.engine.api import (
    Abort,
    Fatal,
    FinishReason,
    FromEngine,
    Output,
    Progress,
    Ready,
    ReportProgress,
    Request,
    StepOutputs,
    ToEngine,
)
from octavo.engine.config import EngineConfig
from octavo.engine.startup.shortage import shortage
from octavo.engine.stop_signals import ignore_stop_signals
from octavo.model.config import ModelError

INTAKE_SECONDS = 0.005  # Between two steps, no more messages are taken in after so long.
PROGRESS_INTERVAL = 0.1  # seconds between two messages about the same piece of work


class StepLoop(Protocol):
    """A StepLoop is what the process drives: engine.Engine, or a fake in tests."""

    def has_work(self) -> bool:
        """Returns whether a step would compute something."""

    def add(self, request: Request) -> Output | None:
        """Queues the request, or returns its terminal output when it can never run."""

    def abort(self, request_id: str) -> Output | None:
        """Forgets the request; an unknown id is no error. Nobody waits for what is returned."""

    def step(self) -> StepOutputs:
        """Computes one batch; returns its outputs and the statistics. Without work there are no outputs."""


Build = Callable[[EngineConfig, ReportProgress], tuple[StepLoop, Ready]]


def main(
    requests: "Connection[Any, ToEngine]", reports: "Connection[FromEngine, Any]", config: EngineConfig, build: Build
) -> None:
    """Builds the engine and runs it until the parent closes `requests`.

    A ModelError while building is the user's to repair and is reported as Fatal, as is what the machine denies: memory,
    threads, files. Any other exception while building, and any exception in a step, leaves an engine that cannot be
    trusted: the process ends with status 1, and its supervisor starts another one.
    """
    ignore_stop_signals()
    if sys.stderr is not None:  # Whoever starts the server may have closed it.
        faulthandler.enable()  # A fault in a kernel and the watchdog's SIGABRT leave the stacks of all threads there.
    logging.basicConfig(format="%(asctime)s %(message)s")  # as in the API process
    logging.getLogger("octavo.engine").setLevel(logging.INFO)
    inbox: SimpleQueue[ToEngine] = SimpleQueue()
    outbox: SimpleQueue[FromEngine | None] = SimpleQueue()
    Thread(target=_read, args=(requests, inbox), name="reader", daemon=True).start()
    writer = Thread(target=_write, args=(reports, outbox), name="writer", daemon=True)
    writer.start()
    try:
        _build_and_loop(config, build, inbox, outbox)
        status = 0
    except Exception:
        traceback.print_exc()
        status = 1
    outbox.put(None)
    writer.join()
    os._exit(status)  # The interpreter's own clean-up can hang on a device in a bad state.


def _build_and_loop(
    config: EngineConfig,
    build: Build,
    inbox: "SimpleQueue[ToEngine]",
    outbox: "SimpleQueue[FromEngine | None]",
) -> None:
    """Returns only when the engine cannot be built and building it again would not help."""
    try:
        engine, ready = build(config, ProgressReporter(outbox.put))
    except ModelError as error:
        outbox.put(Fatal(str(error)))
        return
    except Exception as error:
        sentence = shortage(error)
        if sentence is None:
            raise
        outbox.put(Fatal(sentence))
        return
    outbox.put(ready)
    _loop(engine, inbox, outbox)


class ProgressReporter:
    """Passes on the first and the last message about each piece of work, and between them a few a second."""

    def __init__(self, send: ReportProgress) -> None:
        self._send = send
        self._what = ""
        self._next = 0.0  # monotonic seconds

    def __call__(self, progress: Progress) -> None:
        now = monotonic()
        if progress.what == self._what and progress.done < progress.total and now < self._next:
            return
        self._what, self._next = progress.what, now + PROGRESS_INTERVAL
        self._send(progress)


def _read(requests: "Connection[Any, ToEngine]", inbox: "SimpleQueue[ToEngine]") -> None:
    """Receives requests, from before the engine is loaded on; ends the process when the parent is gone."""
    try:
        while True:
            inbox.put(requests.recv())
    except (EOFError, OSError):
        os._exit(0)


def _write(reports: "Connection[FromEngine, Any]", outbox: "SimpleQueue[FromEngine | None]") -> None:
    try:
        while (message := outbox.get()) is not None:
            reports.send(message)
    except OSError:  # the parent is gone: the reader ends this process
        return


def _loop(engine: StepLoop, inbox: "SimpleQueue[ToEngine]", outbox: "SimpleQueue[FromEngine | None]") -> None:
    while True:
        refused: list[Output] = []
        for message in _arrived(inbox, wait=not engine.has_work()):
            if isinstance(message, Abort):
                engine.abort(message.id)
            elif (refusal := _add(engine, message)) is not None:
                refused.append(refusal)
        step = engine.step()
        outbox.put(replace(step, outputs=(*refused, *step.outputs)))


def _arrived(inbox: "SimpleQueue[ToEngine]", wait: bool) -> Iterator[ToEngine]:
    """Yields the messages that are there, as far as the time allows; with `wait`, it first sleeps until there is one.

    The others keep their order and their turn comes after the next step, so that no stream waits for an intake.
    """
    if wait:
        yield inbox.get()
    until = monotonic() + INTAKE_SECONDS
    while monotonic() < until:
        try:
            yield inbox.get_nowait()
        except Empty:
            return


def _add(engine: StepLoop, request: Request) -> Output | None:
    """Adds a request. One that the engine trips over ends with an error and leaves the others alone."""
    try:
        return engine.add(request)
    except Exception:
        traceback.print_exc()
        engine.abort(request.id)
        message = "The engine could not take this request; the server's log says why."
        return Output(request.id, finish_reason=FinishReason.ERROR, error=message)
