"""Tests that pieces of huge pages are zeroed, aligned, apart from each other, and live as long as one is held."""

import gc
import mmap
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from octavo.model.weights.memory import ALIGNED, CHUNK, HugePages


def test_pieces_are_zeroed_aligned_and_apart() -> None:
    memory = HugePages()
    pieces = [memory.zeros((3, n), torch.float16) for n in range(1, 40)]
    for n, piece in enumerate(pieces):
        assert piece.shape == (3, n + 1)
        assert piece.data_ptr() % ALIGNED == 0
        assert not piece.any()
        piece.fill_(n)
    assert all((piece == n).all() for n, piece in enumerate(pieces))


def test_a_piece_larger_than_a_chunk() -> None:
    memory = HugePages()
    large = memory.zeros((CHUNK + 1,), torch.uint8)
    large[-1] = 7
    assert memory.zeros((5,), torch.uint8).sum() == 0
    assert large[-1] == 7


def test_a_system_without_large_pages_gives_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmap, "MADV_HUGEPAGE", 12345)  # advice that no system understands
    assert not HugePages().zeros((1000,), torch.float32).any()
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE")
    assert not HugePages().zeros((1000,), torch.float32).any()


def test_a_piece_outlives_its_maker() -> None:
    piece = HugePages().zeros((1000,), torch.float32)
    gc.collect()
    assert piece.fill_(3).sum() == 3000


@pytest.mark.parametrize("threads", [4])
def test_several_threads(threads: int) -> None:
    memory = HugePages()
    with ThreadPoolExecutor(threads) as pool:
        pieces = list(pool.map(lambda n: memory.zeros((n,), torch.int64), range(1, 200)))
    for n, piece in enumerate(pieces):
        piece.fill_(n)
    assert all((piece == n).all() for n, piece in enumerate(pieces))
