"""The clock counts each call once, and not the time between replays. A simulated GPU shows it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch

from benchmarks.gpu import clock as gpu_clock
from benchmarks.gpu.clock import FEWEST, PASSES, CudaClock

GAP = 8e-6  # seconds that a launch of a graph takes


@dataclass
class Device:
    """A Device is a simulated GPU, whose time passes when work runs, and not while work is captured."""

    now: float = 0.0
    captured: list[float] | None = None
    replays: int = 0
    graphs: list[int] = field(default_factory=list)  # how many calls each one has

    def work(self, seconds: float) -> Callable[[], None]:
        def run() -> None:
            if self.captured is None:
                self.now += seconds
            else:
                self.captured.append(seconds)

        return run

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        run()  # once for real
        self.captured = []
        run()
        costs, self.captured = self.captured, None
        self.graphs.append(len(costs))

        def replay() -> None:
            self.replays += 1
            self.now += sum(costs) + GAP

        return replay

    def event(self, enable_timing: bool) -> SimpleNamespace:
        mark = SimpleNamespace(at=0.0)
        mark.record = lambda: setattr(mark, "at", self.now)
        mark.elapsed_time = lambda other: 1000 * (other.at - mark.at)
        return mark


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    made = Device()
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "Event", made.event)
    monkeypatch.setattr(gpu_clock, "CudaCapture", lambda device: made.capture)
    return made


@pytest.mark.parametrize("seconds", [2e-6, 30e-6, 1e-3, 0.2])
def test_a_call_takes_what_it_takes(device: Device, seconds: float) -> None:
    spread = CudaClock().time([device.work(seconds)] * 2)
    assert spread.median == pytest.approx(seconds, rel=0.03)
    assert spread.low <= spread.median <= spread.high


def test_short_calls_are_replayed_together_and_long_ones_are_captured_once(device: Device) -> None:
    CudaClock().time([device.work(2e-6)] * 2)
    assert device.graphs[0] == 2 and device.graphs[1] > 50
    device.graphs.clear()
    CudaClock().time([device.work(0.01)] * 2)
    assert device.graphs == [2]


def test_a_pass_takes_its_time_and_no_more(device: Device) -> None:
    CudaClock(seconds=0.05).time([device.work(5e-3)])
    assert 9 * PASSES <= device.replays <= 10 * PASSES + 5
    device.replays = 0
    CudaClock(seconds=0.05).time([device.work(1.0)])
    assert device.replays < FEWEST * PASSES + 10


def test_different_calls_are_averaged(device: Device) -> None:
    assert CudaClock().eager([device.work(1e-3), device.work(3e-3)]).median == pytest.approx(2e-3)
