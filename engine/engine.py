"""Engine: add, abort, step. A step is three calls: schedule, run, update."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from engine.api import FinishReason, Output, Progress, Ready, Request, StepOutputs
from engine.blocks import BlockPool
from engine.config import EngineConfig
from engine.scheduler import Scheduler
from engine.step import Batch, Sample

if TYPE_CHECKING:
    from engine.grammar import Grammars

COMPILE_WAIT = 0.02  # seconds to wait for a grammar before looking for new messages, when there is nothing else to do


class Runner(Protocol):
    """What computes a batch: the model, or a stand-in."""

    def run(self, batch: Batch) -> Sequence[Sample]:
        """Computes at least one row into the cache; returns one sample for each row of `batch.answered`."""


class Engine:
    """One model behind one scheduler. Not thread-safe: one loop owns it."""

    def __init__(self, scheduler: Scheduler, runner: Runner, grammars: "Grammars | None" = None) -> None:
        """`grammars` are those that the runner keeps to."""
        from engine.grammar import Grammars  # its library loads here, in the engine's own process

        self.scheduler = scheduler
        self.runner = runner
        self.grammars = grammars or Grammars()

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
        return self.scheduler.has_work() or self.grammars.compiling > 0

    def step(self) -> StepOutputs:
        """Computes one batch and returns what it brought; without work, only the statistics."""
        refused = self._add_compiled()
        batch = self.scheduler.schedule()
        samples = self.runner.run(batch) if batch.rows else ()  # without work, or when a sequence lost its blocks
        outputs = (*refused, *self.scheduler.update(batch, samples))
        for output in outputs:
            if output.finish_reason is not None:
                self.grammars.forget(output.id)
        stats = self.scheduler.stats()
        return StepOutputs(outputs, replace(stats, waiting=stats.waiting + self.grammars.compiling))

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


def build(config: EngineConfig, report: Callable[[Progress], None]) -> tuple[Engine, Ready]:
    """Loads the model and sizes everything to the machine.

    Raises model.config.ModelError, with a sentence for the user, for whatever starting again would not change.
    """
    from engine.runner import start  # torch loads here, in the engine's own process

    runner, limits, ready = start(config, report)
    pool = BlockPool(runner.cache.num_blocks, runner.cache.block_size)
    return Engine(Scheduler(pool, limits), runner, runner.grammars), ready
