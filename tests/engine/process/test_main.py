"""The tests talk to an engine process through its pipes: what it answers, what it survives, and what it dies of."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from queue import SimpleQueue
from typing import Any

import pytest

from octavo.engine.api import (
    Abort,
    EngineStats,
    Fatal,
    FinishReason,
    Output,
    Progress,
    Ready,
    Request,
    StepOutputs,
)
from octavo.engine.config import EngineConfig
from octavo.engine.process import main as process
from octavo.engine.process.main import ProgressReporter
from tests.engine.process.support import PATIENCE, request
from tests.fake_engine import CRASH, POISON, REFUSED, Behaviour, fake_build


@dataclass
class Child:
    """A Child is an engine process with the parent's ends of its two pipes."""

    process: BaseProcess
    requests: Connection
    reports: Connection

    def send(self, *messages: Request | Abort) -> None:
        for message in messages:
            self.requests.send(message)

    def receive(self) -> Any:
        assert self.reports.poll(PATIENCE), "no message"
        return self.reports.recv()

    def receive_ready(self) -> Ready:
        while isinstance(message := self.receive(), Progress):
            pass
        assert isinstance(message, Ready)
        return message

    def outputs_of(self, request_id: str) -> list[Output]:
        """Waits for the terminal output of the request; returns all of its outputs."""
        outputs: list[Output] = []
        while not outputs or outputs[-1].finish_reason is None:
            outputs += [output for output in self.receive().outputs if output.id == request_id]
        return outputs

    def exit_code(self) -> int | None:
        self.process.join(PATIENCE)
        return self.process.exitcode


@contextmanager
def started(behaviour: Behaviour) -> Iterator[Child]:
    """Starts an engine process over a fake engine; afterwards kills it."""
    context = get_context("spawn")
    request_reader, requests = context.Pipe(duplex=False)
    reports, report_writer = context.Pipe(duplex=False)
    arguments = (request_reader, report_writer, EngineConfig(model=""), fake_build(behaviour))
    child = Child(context.Process(target=process.main, args=arguments), requests, reports)
    child.process.start()
    request_reader.close()
    report_writer.close()
    try:
        yield child
    finally:
        child.process.kill()
        child.process.join()
        requests.close()
        reports.close()


Start = Callable[[Behaviour], Child]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts engine processes, which end with the test."""
    with ExitStack() as stack:
        yield lambda behaviour: stack.enter_context(started(behaviour))


def test_it_reports_progress_then_its_bounds(start: Start) -> None:
    child = start(Behaviour())
    first = child.receive()
    assert first == Progress("loading weights", 0, 10)
    assert child.receive_ready().max_num_seqs == 4


def test_requests_are_answered_with_one_message_a_step(start: Start) -> None:
    child = start(Behaviour())
    child.receive_ready()
    child.send(request("a", 7))
    steps = [child.receive() for _ in range(3)]
    assert [step.outputs for step in steps] == [
        (Output("a", (8,)),),
        (Output("a", (9,)),),
        (Output("a", (10,), finish_reason=FinishReason.LENGTH),),
    ]


def test_requests_that_came_while_loading_are_not_lost(start: Start) -> None:
    child = start(Behaviour(load_seconds=0.5))
    child.send(request("a", 7))
    child.receive_ready()
    assert len(child.outputs_of("a")) == 3


def test_an_abort_frees_the_sequence_and_says_so(start: Start) -> None:
    child = start(Behaviour(step_seconds=0.001))
    child.receive_ready()
    child.send(request("a", 7, max_tokens=10**9))
    assert child.receive().stats.running == 1
    child.send(Abort("a"), Abort("unknown"))
    while child.receive().stats.running:
        pass


@pytest.mark.parametrize(("token", "error"), [(REFUSED, "refused by the engine"), (POISON, "could not take")])
def test_a_refused_request_leaves_the_others_alone(start: Start, token: int, error: str) -> None:
    child = start(Behaviour())
    child.receive_ready()
    child.send(request("a", 7), request("bad", token))
    outputs: list[Output] = []
    while sum(output.finish_reason is not None for output in outputs) < 2:
        outputs += child.receive().outputs
    (refusal,) = [output for output in outputs if output.id == "bad"]
    assert refusal.finish_reason is FinishReason.ERROR
    assert error in str(refusal.error)
    assert len([output for output in outputs if output.id == "a"]) == 3


def test_a_step_that_raises_ends_the_process(start: Start) -> None:
    """Even a ModelError does, which is Fatal only while the engine is built."""
    child = start(Behaviour())
    child.receive_ready()
    child.send(request("a", CRASH))
    assert child.exit_code() == 1


def test_a_model_error_is_the_users_to_repair(start: Start) -> None:
    child = start(Behaviour(fatal="Give another directory."))
    while isinstance(message := child.receive(), Progress):
        pass
    assert message == Fatal("Give another directory.")
    assert child.exit_code() == 0


@pytest.mark.parametrize("loading", [True, False])
def test_it_does_not_outlive_its_parent(start: Start, loading: bool) -> None:
    child = start(Behaviour(load_seconds=10**6 if loading else 0))
    child.receive()
    if not loading:
        child.receive_ready()
    child.requests.close()
    assert child.exit_code() == 0


def test_signals_to_the_group_do_not_reach_it(start: Start) -> None:
    child = start(Behaviour())
    child.receive_ready()
    assert child.process.pid is not None
    os.kill(child.process.pid, signal.SIGINT)
    os.kill(child.process.pid, signal.SIGTERM)
    child.send(request("a", 7))
    assert len(child.outputs_of("a")) == 3


def test_an_idle_process_is_silent(start: Start) -> None:
    child = start(Behaviour())
    child.receive_ready()
    child.send(Abort("nobody"))
    assert child.receive() == StepOutputs((), EngineStats())
    assert not child.reports.poll(0.2)


def test_progress_is_reported_a_few_times_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(process, "monotonic", lambda: now)
    sent: list[Progress] = []
    report = ProgressReporter(sent.append)
    for done in range(1001):
        now = done / 1000
        report(Progress("weights", done, 1000))
    report(Progress("kernels", 0, 2))
    assert sent[0] == Progress("weights", 0, 1000)
    assert Progress("weights", 1000, 1000) in sent
    assert sent[-1] == Progress("kernels", 0, 2)
    assert 10 <= len(sent) <= 13


def test_between_two_steps_no_more_is_taken_in_than_time_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others keep their order: they are taken in after the next steps."""
    inbox: SimpleQueue[Request | Abort] = SimpleQueue()
    for n in range(12):
        inbox.put(Abort(str(n)))
    ticks = count()
    monkeypatch.setattr(process, "monotonic", lambda: next(ticks) * process.INTAKE_SECONDS / 5)
    intakes = [[message.id for message in process._arrived(inbox, wait=True)] for _ in range(2)]
    assert intakes == [["0", "1", "2", "3", "4"], ["5", "6", "7", "8", "9"]]
    assert [message.id for message in process._arrived(inbox, wait=False)] == ["10", "11"]
