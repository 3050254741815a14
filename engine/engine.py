"""Engine: add, abort, step. A step is four calls: schedule, launch, collect, update.

Where the runner computes in the background, the next step is scheduled and launched before this one is collected:

    host      schedule 1, launch 1 | schedule 2, launch 2 | collect 1, update 1 | schedule 3, launch 3 | collect 2, ...
    device                         | 1                                          | 2                          | 3

Step 2 is prepared before the tokens of step 1 are known. They are PENDING in its batch, and stay on the device.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from octavo.engine.api import FinishReason, Output, Request, StepOutputs
from octavo.engine.compute.grammar import Grammars
from octavo.engine.schedule.batch import Batch, Sample
from octavo.engine.schedule.scheduler import Scheduler

COMPILE_WAIT = 0.02  # seconds to wait for a grammar before looking for new messages, when there is nothing else to do

Launched = Any  # what a runner knows of a step under way is for that runner alone


class Runner(Protocol):
    """What computes a batch: the model, or a stand-in."""

    @property
    def overlaps(self) -> bool:
        """Whether `launch` returns while the device still computes, so that a next step is worth preparing."""

    def launch(self, batch: Batch, before: Launched | None) -> Launched:
        """Begins to compute at least one row into the cache. `before` is what drew the batch's PENDING tokens."""

    def collect(self, launched: Launched) -> Sequence[Sample]:
        """Waits for a step; returns one sample for each row of `batch.answered`."""


@dataclass(frozen=True, slots=True)
class UnderWay:
    """A step that was launched and not collected."""

    batch: Batch
    launched: Launched


class Engine:
    """One model behind one scheduler. Not thread-safe: one loop owns it."""

    def __init__(self, scheduler: Scheduler, runner: Runner, grammars: Grammars | None = None) -> None:
        """`grammars` are those that the runner keeps to."""
        self.scheduler = scheduler
        self.runner = runner
        self.grammars = grammars or Grammars()
        self._under_way: UnderWay | None = None

    def add(self, request: Request) -> Output | None:
        """Accepts a request, or returns its terminal output. One with a grammar is scheduled when that is compiled."""
        if request.params.grammar is None:
            return self.scheduler.add(request)
        self.grammars.compile(request, request.params.grammar)
        return None

    def abort(self, request_id: str) -> Output | None:
        """Ends a request and returns its terminal output; None when it is unknown or has ended."""
        if self.grammars.forget(request_id):  # the scheduler has never seen it
            return Output(request_id, finish_reason=FinishReason.ABORT)
        return self.scheduler.abort(request_id)

    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return self.scheduler.has_work() or self.grammars.compiling > 0 or self._under_way is not None

    def step(self) -> StepOutputs:
        """Computes a batch; returns what came of it, or of the one before it. Without work, only the statistics."""
        outputs = self._add_compiled()
        batch, before = self.scheduler.schedule(), self._under_way
        self._under_way = self._launch(batch, before)
        outputs += self._collect(before)
        if not self.runner.overlaps or batch.must_be_awaited:
            now, self._under_way = self._under_way, None
            outputs += self._collect(now)
        for output in outputs:
            if output.finish_reason is not None:
                self.grammars.forget(output.id)
        stats = self.scheduler.stats()
        return StepOutputs(tuple(outputs), replace(stats, waiting=stats.waiting + self.grammars.compiling))

    def _launch(self, batch: Batch, before: UnderWay | None) -> UnderWay | None:
        """None when there is nothing to compute: no work, or a sequence lost its blocks."""
        if not batch.rows:
            return None
        return UnderWay(batch, self.runner.launch(batch, before.launched if before else None))

    def _collect(self, step: UnderWay | None) -> list[Output]:
        return [] if step is None else self.scheduler.update(step.batch, self.runner.collect(step.launched))

    def _add_compiled(self) -> list[Output]:
        """Hands on the requests whose grammar has become ready; returns the ends of those that can never run."""
        wait = 0.0 if self.scheduler.has_work() else COMPILE_WAIT
        ended = []
        for request, error in self.grammars.compiled(wait):
            if error is not None:
                ended.append(Output(request.id, finish_reason=FinishReason.ERROR, error=error))
            elif (refusal := self.scheduler.add(request)) is not None:
                ended.append(refusal)
        return ended
