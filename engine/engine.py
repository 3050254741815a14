"""Engine: add, abort, step. A step is three calls: schedule, run, update."""

from collections.abc import Callable, Sequence
from typing import Protocol

from engine.api import Output, Progress, Ready, Request, StepOutputs
from engine.blocks import BlockPool
from engine.config import EngineConfig
from engine.scheduler import Scheduler
from engine.step import Batch, Sample


class Runner(Protocol):
    """What computes a batch: the model, or a stand-in."""

    def run(self, batch: Batch) -> Sequence[Sample]:
        """Computes at least one row into the cache; returns one sample for each row of `batch.answered`."""


class Engine:
    """One model behind one scheduler. Not thread-safe: one loop owns it."""

    def __init__(self, scheduler: Scheduler, runner: Runner) -> None:
        self.scheduler = scheduler
        self.runner = runner

    def add(self, request: Request) -> Output | None:
        """Accepts a request, or returns its terminal output."""
        return self.scheduler.add(request)

    def abort(self, request_id: str) -> Output | None:
        """Ends a request and returns its terminal output; None when it is unknown or has ended."""
        return self.scheduler.abort(request_id)

    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return self.scheduler.has_work()

    def step(self) -> StepOutputs:
        """Computes one batch and returns what it brought; without work, only the statistics."""
        batch = self.scheduler.schedule()
        samples = self.runner.run(batch) if batch.rows else ()  # without work, or when a sequence lost its blocks
        outputs = self.scheduler.update(batch, samples)
        return StepOutputs(tuple(outputs), self.scheduler.stats())


def build(config: EngineConfig, report: Callable[[Progress], None]) -> tuple[Engine, Ready]:
    """Loads the model and sizes everything to the machine.

    Raises model.config.ModelError, with a sentence for the user, for whatever starting again would not change.
    """
    from engine.runner import start  # torch loads here, in the engine's own process

    runner, limits, ready = start(config, report)
    pool = BlockPool(runner.cache.num_blocks, runner.cache.block_size)
    return Engine(Scheduler(pool, limits), runner), ready
