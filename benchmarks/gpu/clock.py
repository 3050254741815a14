"""Measures how long a device takes for something, without the time that the host takes to launch it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any, Protocol

import torch

from benchmarks.common.figures import Spread
from octavo.engine.compute.graphs import CudaCapture

PASSES = 2  # a figure is the median of their medians; its range is over all replays
FEWEST, MOST = 5, 500  # replays in a pass
SHORTEST = 2e-3  # seconds of a replay: the microseconds between two replays are then no part of the figure
MOST_ROUNDS = 500  # times that a replay makes all calls

# Calls do the same work on different memory, which is more than any cache holds.
Calls = Sequence[Callable[[], Any]]


class Clock(Protocol):
    """A Clock measures calls."""

    def time(self, calls: Calls) -> Spread:
        """Returns the seconds of one of the calls, which run in turn."""

    def eager(self, calls: Calls) -> Spread:
        """Does the same with the host launching each operation, for calls that no graph can hold."""


@dataclass(frozen=True, slots=True)
class CudaClock:
    """A CudaClock puts events around replays of a CUDA graph of all calls.

    Capturing raises if a call waits for the device. In every replay a call's tensors lie at the same place, in the
    graph's own memory.
    """

    seconds: float = 0.2  # that a pass takes

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
        """Returns the seconds of one of the `count` calls that `run` makes."""
        replays = min(MOST, max(FEWEST, int(self.seconds / max(min(_timed(run, 2)), 1e-6))))
        passes = [_timed(run, replays) for _ in range(PASSES)]
        every = [seconds / count for each in passes for seconds in each]
        return Spread(median(median(each) for each in passes) / count, min(every), max(every))


class HostClock:
    """A HostClock shows, without a GPU, that everything runs. Its seconds mean nothing."""

    def time(self, calls: Calls) -> Spread:
        started = perf_counter()
        calls[0]()
        return Spread.over([perf_counter() - started])

    def eager(self, calls: Calls) -> Spread:
        return self.time(calls)


def _captured(calls: Calls, rounds: int) -> Callable[[], None]:
    """Returns the replay of a graph that makes all calls so many times."""

    def run() -> None:
        for _ in range(rounds):
            for call in calls:
                call()

    return CudaCapture(torch.device("cuda"))(run)


def _timed(run: Callable[[], object], replays: int) -> list[float]:
    """Returns the seconds of each replay."""
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(replays + 1)]
    torch.cuda.synchronize()
    marks[0].record()
    for mark in marks[1:]:
        run()
        mark.record()
    torch.cuda.synchronize()
    return [before.elapsed_time(after) / 1000 for before, after in zip(marks, marks[1:], strict=False)]
