"""What a GPU does at its best: a streaming read, a large matrix product, a copy from pinned memory."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from benchmarks.gpu.clock import Clock
from benchmarks.gpu.table import Ceilings

READ, COPIED = 4 << 30, 1 << 30  # bytes
SIDE = 8192  # of the square matrices
CHUNK = 1 << 14  # 32-bit words that a program reads
SMALL = 16  # of which all of this is made smaller where nothing is measured


@triton.jit
def _read(words_ptr, sums_ptr, CHUNK: tl.constexpr):
    chunk = tl.program_id(0)
    words = tl.load(words_ptr + chunk.to(tl.int64) * CHUNK + tl.arange(0, CHUNK))
    tl.store(sums_ptr + chunk, tl.sum(words, 0))


def read(words: Tensor, sums: Tensor) -> Tensor:
    """words [n * CHUNK] float32 -> sums [n], to have read every word once."""
    _read[(sums.numel(),)](words, sums, CHUNK=CHUNK, num_warps=8)
    return sums


def measure(device: torch.device, clock: Clock) -> Ceilings:
    """The best of each, of which everything else is a share."""
    real = device.type == "cuda"
    return Ceilings(*(each(device, clock, real) for each in (_reading, _product, _copy)))


def _reading(device: torch.device, clock: Clock, real: bool) -> float:
    count = (READ if real else CHUNK * SMALL) // 4
    words = torch.randn(count, device=device)  # random: equal words would cost less power, and so less time
    sums = torch.empty(count // CHUNK, device=device)
    return words.nbytes / clock.time([lambda: read(words, sums)]).low


def _product(device: torch.device, clock: Clock, real: bool) -> float:
    side = SIDE if real else SIDE // SMALL
    one, other = (torch.randn(side, side, device=device).bfloat16() for _ in range(2))
    return 2 * side**3 / clock.time([lambda: one @ other]).low


def _copy(device: torch.device, clock: Clock, real: bool) -> float:
    host = torch.ones(COPIED if real else COPIED // SMALL, dtype=torch.uint8, pin_memory=real)
    there = torch.empty_like(host, device=device)
    return host.nbytes / clock.eager([lambda: there.copy_(host, non_blocking=True)]).low
