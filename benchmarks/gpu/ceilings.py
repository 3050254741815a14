"""Measures what a GPU does at its best: a streaming read, a large matrix product, a copy from pinned memory."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from benchmarks.gpu.clock import Clock

READ, COPIED = 4 << 30, 1 << 30  # bytes
SIDE = 8192  # of the square matrices
CHUNK = 1 << 14  # 32-bit words that a program reads
SMALL = 16  # all sizes are divided by it if there is no GPU


@dataclass(frozen=True, slots=True)
class Ceilings:
    """A Ceilings holds the best rates that the device reached in this run."""

    read: float  # bytes a second that kernels read
    product: float  # FLOP a second of a large bfloat16 matrix product
    copy: float  # bytes a second from pinned memory

    def floor(self, bytes_read: float, flop: float = 0.0) -> float:
        """Returns the seconds that reading and multiplying so much takes at these rates."""
        return max(bytes_read / self.read, flop / self.product)


@triton.jit
def _sum_chunk(words_ptr, sums_ptr, CHUNK: tl.constexpr):
    chunk = tl.program_id(0)
    words = tl.load(words_ptr + chunk.to(tl.int64) * CHUNK + tl.arange(0, CHUNK))
    tl.store(sums_ptr + chunk, tl.sum(words, 0))


def sum_chunks(words: Tensor, sums: Tensor) -> Tensor:
    """Reads every word once: words [n * CHUNK] float32 -> sums [n]."""
    _sum_chunk[(sums.numel(),)](words, sums, CHUNK=CHUNK, num_warps=8)
    return sums


def measure(device: torch.device, clock: Clock) -> Ceilings:
    """Measures the best of each."""
    real = device.type == "cuda"
    return Ceilings(*(each(device, clock, real) for each in (_read, _product, _copy)))


def _read(device: torch.device, clock: Clock, real: bool) -> float:
    count = (READ if real else CHUNK * SMALL) // 4
    words = torch.randn(count, device=device)  # random, because equal words would take less power, and so less time
    sums = torch.empty(count // CHUNK, device=device)
    return words.nbytes / clock.time([lambda: sum_chunks(words, sums)]).low


def _product(device: torch.device, clock: Clock, real: bool) -> float:
    side = SIDE if real else SIDE // SMALL
    one, other = (torch.randn(side, side, device=device).bfloat16() for _ in range(2))
    return 2 * side**3 / clock.time([lambda: one @ other]).low


def _copy(device: torch.device, clock: Clock, real: bool) -> float:
    host = torch.ones(COPIED if real else COPIED // SMALL, dtype=torch.uint8, pin_memory=real)
    there = torch.empty_like(host, device=device)
    return host.nbytes / clock.eager([lambda: there.copy_(host, non_blocking=True)]).low
