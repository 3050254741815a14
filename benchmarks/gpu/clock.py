"""How long a device takes for something, without what the host takes to ask for it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any, Protocol

import torch

from benchmarks.common.figures import Spread
from octavo.engine.compute.graphs import CudaCapture

PASSES = 2  # a figure is the middle of their medians; the range is over all replays of both
FEWEST, MOST = 5, 500  # replays in a pass
SHORTEST = 2e-3  # seconds of a replay: what lies between two replays, some microseconds, is then no part of the figure
MOST_ROUNDS = 500  # of the calls in a replay

# The same work on different memory, which is more than any cache holds.
Calls = Sequence[Callable[[], Any]]


class Clock(Protocol):
    """Measures calls."""

    def time(self, calls: Calls) -> Spread:
        """Seconds of one of the calls, which are run in turn."""

    def eager(self, calls: Calls) -> Spread:
        """The same with the host asking for each operation, as where no graph is possible."""


@dataclass(frozen=True, slots=True)
class CudaClock:
    """Events around replays of a CUDA graph of all calls.

    Capturing proves that no call waits for the device: it would raise. What a call allocates, it finds in the graph's
    own memory in every replay.
    """

    seconds: float = 0.2  # of a pass

    def time(self, calls: Calls) -> Spread:
        replay = _captured(calls, rounds=1)
        once = min(_timed(replay, 3))
        rounds = min(MOST_ROUNDS, math.ceil(SHORTEST / max(once, 1e-6)))
        if rounds > 1:
            replay = _captured(calls, rounds)
        return self._spread(replay, rounds * len(calls))

    def eager(self, calls: Calls) -> Spread:
        def run() -> None:
            for call in calls:
                call()

        run()
        return self._spread(run, len(calls))

    def _spread(self, run: Callable[[], object], count: int) -> Spread:
        """Of the seconds of one of `count` calls that `run` makes."""
        replays = min(MOST, max(FEWEST, int(self.seconds / max(min(_timed(run, 2)), 1e-6))))
        passes = [_timed(run, replays) for _ in range(PASSES)]
        every = [seconds / count for each in passes for seconds in each]
        return Spread(median(median(each) for each in passes) / count, min(every), max(every))


class HostClock:
    """For a trial without a GPU: it shows that everything runs, and its seconds mean nothing."""

    def time(self, calls: Calls) -> Spread:
        started = perf_counter()
        calls[0]()
        return Spread.over([perf_counter() - started])

    def eager(self, calls: Calls) -> Spread:
        return self.time(calls)


def _captured(calls: Calls, rounds: int) -> Callable[[], None]:
    """A replay of so many rounds of the calls."""

    def run() -> None:
        for _ in range(rounds):
            for call in calls:
                call()

    return CudaCapture(torch.device("cuda"))(run)


def _timed(run: Callable[[], object], replays: int) -> list[float]:
    """Seconds of each."""
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(replays + 1)]
    torch.cuda.synchronize()
    marks[0].record()
    for mark in marks[1:]:
        run()
        mark.record()
    torch.cuda.synchronize()
    return [before.elapsed_time(after) / 1000 for before, after in zip(marks, marks[1:], strict=False)]
