"""Engine takes requests and computes them in steps. A step is three calls: schedule, run, update.

To run a batch is to launch it and to collect its samples. Where the runner computes in the background, the next step is
scheduled and launched before this one is collected:

    host      schedule 1, launch 1 | schedule 2, launch 2 | collect 1, update 1 | schedule 3, launch 3 | collect 2, ...
    device                         | 1                                          | 2                          | 3

Step 2 is prepared before the tokens of step 1 are known. They are PENDING in its batch, and stay on the device.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from time import monotonic
from typing import Generic, Protocol, TypeVar

from octavo.engine.api import EngineStats, ExpertUse, FinishReason, Output, Request, StepOutputs
from octavo.engine.compute.grammar import Grammars
from octavo.engine.schedule.batch import Batch, Sample
from octavo.engine.schedule.scheduler import Scheduler

INTAKE_SECONDS = 0.005  # In each step, no more requests are bound to their grammars after so long.
COMPILE_WAIT = 0.02  # seconds to wait for a grammar before looking for new messages, when there is nothing else to do
USE_INTERVAL = 1.0  # seconds between two reports of how the experts are used, unless a request ends


class Launched(Protocol):
    """A Launched is a step that a runner has begun. Only its runner knows what it holds besides its batch."""

    @property
    def batch(self) -> Batch:
        """Returns the batch that was launched."""


Step = TypeVar("Step", bound=Launched)


class Runner(Protocol[Step]):
    """A Runner computes batches: with a model, or with a stand-in for one."""

    @property
    def overlaps(self) -> bool:
        """Returns whether `launch` returns while the device still computes, so that a next step is worth preparing."""

    @property
    def grammars(self) -> Grammars:
        """Returns the grammars that the tokens follow."""

    def launch(self, batch: Batch, before: Step | None) -> Step:
        """Begins to compute at least one row into the cache. `before` is what drew the batch's PENDING tokens."""

    def collect(self, step: Step) -> Sequence[Sample]:
        """Waits for a step; returns one sample for each row of its batch."""

    def expert_use(self) -> tuple[ExpertUse, ...]:
        """Returns how the experts were used in the steps that were collected since the last time."""


class Engine(Generic[Step]):
    """An Engine is one model behind one scheduler. It is not thread-safe: one loop owns it."""

    def __init__(self, scheduler: Scheduler, runner: Runner[Step]) -> None:
        self.scheduler = scheduler
        self.runner = runner
        self._launched: deque[Step] = deque()  # steps that are launched and not collected, oldest first
        self._use_told = 0.0  # when the use of experts was last told, by the monotonic clock

    def add(self, request: Request) -> Output | None:
        """Accepts a request, or returns its terminal output. One with a grammar is scheduled when that is compiled."""
        if request.params.grammar is None:
            return self.scheduler.add(request)
        self.runner.grammars.compile(request, request.params.grammar)
        return None

    def abort(self, request_id: str) -> Output | None:
        """Ends a request and returns its terminal output; returns None when it is unknown or has ended."""
        if self.runner.grammars.forget(request_id):  # the scheduler has never seen it
            return Output(request_id, finish_reason=FinishReason.ABORT)
        return self.scheduler.abort(request_id)

    def has_work(self) -> bool:
        """Returns whether a step would do anything."""
        return self.scheduler.has_work() or self.runner.grammars.compiling > 0 or bool(self._launched)

    def step(self) -> StepOutputs:
        """Launches a batch and collects the steps that are due; returns what they tell, and the statistics.

        Without work there are only the statistics. If blocks are short, the steps under way are collected first: a
        sequence that they end gives its blocks back before another one is preempted for want of them.
        """
        outputs = self._add_compiled()
        if self._launched and self.scheduler.is_short():
            outputs += self._collect(0)
        batch = self.scheduler.schedule()
        self._launch(batch)
        outputs += self._collect(1 if batch.rows and self.runner.overlaps and not batch.must_be_awaited else 0)
        ended = [output.id for output in outputs if output.finish_reason is not None]
        for request_id in ended:
            self.runner.grammars.forget(request_id)
        return StepOutputs(tuple(outputs), self._stats(), self._expert_use(bool(ended)))

    def _expert_use(self, has_ended: bool) -> tuple[ExpertUse, ...]:
        """Returns how the experts were used since it was last told: not in every step, but whenever a request ends.

        The end of a request by an abort is told when nothing else is left to do, at the latest.
        """
        now = monotonic()
        if not has_ended and self.has_work() and now - self._use_told < USE_INTERVAL:
            return ()
        self._use_told = now
        return self.runner.expert_use()

    def _launch(self, batch: Batch) -> None:
        """Launches the batch, unless it is empty."""
        if batch.rows:
            before = self._launched[-1] if self._launched else None
            self._launched.append(self.runner.launch(batch, before))

    def _collect(self, under_way: int) -> list[Output]:
        """Collects the oldest steps, until so many are still under way; returns what they tell.

        One may stay under way where the runner overlaps: it is collected behind the next launch. None may, however, if
        the next batch cannot be scheduled without its samples.
        """
        outputs: list[Output] = []
        while len(self._launched) > under_way:
            step = self._launched.popleft()
            outputs += self.scheduler.update(step.batch, self.runner.collect(step))
        return outputs

    def _add_compiled(self) -> list[Output]:
        """Schedules requests whose grammar is compiled, as many as the time allows.

        Returns the terminal outputs of those that cannot run.
        """
        wait = 0.0 if self.scheduler.has_work() else COMPILE_WAIT
        ended, started = [], monotonic()
        for request, error in self.runner.grammars.compiled(wait):
            if error is not None:
                ended.append(Output(request.id, finish_reason=FinishReason.ERROR, error=error))
            elif (refusal := self.scheduler.add(request)) is not None:
                ended.append(refusal)
            if monotonic() - started > wait + INTAKE_SECONDS:
                break
        return ended

    def _stats(self) -> EngineStats:
        """Returns the scheduler's statistics. Requests whose grammar is being compiled count as waiting, too."""
        stats = self.scheduler.stats()
        return replace(stats, waiting=stats.waiting + self.runner.grammars.compiling)
