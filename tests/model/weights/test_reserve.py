"""Tests that the reserve's zeros are there before anybody asks, are handed over once, and that none are kept."""

import mmap
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from octavo.model.weights.memory import zeros_on
from octavo.model.weights.reserve import STEP, Reserve, huge_pages

PATIENCE = 60  # seconds; the machine may be busy
STATUS = Path("/proc/self/status")
CPU = torch.device("cpu")


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def memory_in_use() -> int:
    """Returns the bytes of this process that belong to no file."""
    lines = STATUS.read_text(encoding="ascii").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


@pytest.mark.skipif(not STATUS.exists(), reason="not on Linux")
def test_all_of_it_is_taken_if_there_is_time() -> None:
    before, size = memory_in_use(), 16 * STEP
    reserve = Reserve(size)
    until(lambda: memory_in_use() - before > 0.9 * size)
    memory = reserve.hand_over()
    assert len(memory) == size
    assert not torch.frombuffer(memory, dtype=torch.uint8).any()


@pytest.mark.parametrize("size", [1, STEP - 1, STEP + 1, 100 * STEP])
def test_it_is_whole_whenever_it_is_handed_over(size: int) -> None:
    memory = Reserve(size).hand_over()
    pages = torch.frombuffer(memory, dtype=torch.uint8)
    assert len(pages) == size and not pages[:: 2 << 20].any()
    pages[-1] = 7  # the rest is there as soon as it is used


def test_it_keeps_nothing() -> None:
    reserve = Reserve(STEP)
    memory = weakref.ref(reserve.hand_over())
    assert memory() is None
    with pytest.raises(AssertionError, match="handed over before"):
        reserve.hand_over()


def test_weights_lie_in_it_first() -> None:
    memory = Reserve(STEP).hand_over()
    start = torch.frombuffer(memory, dtype=torch.uint8).data_ptr()
    zeros = zeros_on(CPU, memory)
    first, second, beyond = (zeros((STEP // 2,), torch.uint8) for _ in range(3))
    assert (first.data_ptr(), second.data_ptr()) == (start, start + STEP // 2)
    assert not start <= beyond.data_ptr() < start + STEP
    assert not beyond.any()


def test_a_system_without_large_pages_gives_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmap, "MADV_HUGEPAGE", 12345, raising=False)  # advice that no system understands
    assert huge_pages(1000)[:] == bytes(1000)
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE")
    assert huge_pages(1000)[:] == bytes(1000)
