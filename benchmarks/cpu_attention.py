"""The C kernels' attention over the paged cache: `python -m benchmarks.cpu_attention [--rounds 5] [--level avx2]`.

Decoding is held against memory: the bytes of keys and values per second, as a share of what threads read that do
nothing else, the better of right before and right after. Prefill is held against torch's scaled_dot_product_attention,
over keys and values that already lie in one piece. All rows take turns in every round.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median
from time import perf_counter

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.common import bandwidth
from benchmarks.common.bandwidth import Bandwidth
from benchmarks.common.figures import Spread
from benchmarks.common.machine import describe
from benchmarks.common.markdown import head, line, spread
from octavo.model.batch import ForwardBatch
from octavo.model.kernels.cpu.library import Library, how_to_build, library
from octavo.model.kernels.cpu.structs import PagesStruct, PassStruct
from octavo.model.kv_cache import LayerCache
from octavo.model.weights.memory import zeros_on

HEADS, KV_HEADS, DIM, BLOCK = 16, 4, 64, 16  # as benchmarks.common.checkpoint has them
ITEM = 4  # bytes of a float32
POOL = 1 << 29  # bytes of pages, which are gone through in turn: no cache holds them
STREAMS, CONTEXTS = (1, 16), (512, 2048, 8192)
PREFILLS = ((512, 0), (512, 1536), (2048, 0), (2048, 1536))  # new tokens, tokens before
PASSES = 3  # over all pages, or of a prefill, in each round

Rows = list[tuple[int, int]]  # of each sequence: tokens before, new tokens
Call = Callable[[], Tensor]
Found = dict[str, list[tuple[float, float]]]  # of each row, round by round: a rate, and its share of another


@dataclass(frozen=True, slots=True)
class Pool:
    """Random pages, and the kernels that look into them."""

    kernels: Library
    pages: LayerCache

    @classmethod
    def random(cls, kernels: Library, size: int = POOL) -> "Pool":
        """Pages of `size` bytes in all."""
        shape = size // (2 * BLOCK * KV_HEADS * DIM * ITEM), BLOCK, KV_HEADS, DIM
        keys, values = (zeros_on(torch.device("cpu"))(shape, torch.float32).normal_() for _ in range(2))
        return cls(kernels, LayerCache(keys, values, keys.flatten(0, 1), values.flatten(0, 1)))

    def calls(self, rows: Rows) -> list[Call]:
        """The same step over one part of the pages after the other."""
        width = max(-(-(before + new) // BLOCK) for before, new in rows)
        order = torch.randperm(len(self.pages.keys), generator=torch.Generator().manual_seed(width)).int()
        tables = order[: len(order) // (len(rows) * width) * len(rows) * width].view(-1, len(rows), width)
        heads = torch.randn(sum(new for _, new in rows), HEADS + 2 * KV_HEADS, DIM)
        return [partial(self._run, heads, batch_of(rows, table)) for table in tables]

    def _run(self, heads: Tensor, batch: ForwardBatch) -> Tensor:
        split = heads.split((HEADS, KV_HEADS, KV_HEADS), dim=1)
        return self.kernels.attention(split, PassStruct.of(batch, BLOCK, None), None, PagesStruct.of(self.pages))


def batch_of(rows: Rows, table: Tensor) -> ForwardBatch:
    """The flat batch of (tokens before, new tokens), of sequences that own the blocks of a row of the table each."""
    counts, ends = [new for _, new in rows], [before + new for before, new in rows]
    positions = torch.cat([torch.arange(before, end) for (before, _), end in zip(rows, ends, strict=True)])
    sequence = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor(counts))
    starts = torch.tensor([0, *counts]).cumsum(0)
    return ForwardBatch(
        tokens=torch.zeros_like(positions),
        positions=positions,
        slots=table[sequence, positions // BLOCK].long() * BLOCK + positions % BLOCK,
        q_starts=starts.int(),
        kv_lens=torch.tensor(ends, dtype=torch.int32),
        block_table=table.contiguous(),
        logit_rows=starts[1:] - 1,
        q_lens_host=tuple(counts),
        kv_lens_host=tuple(ends),
    )


def bytes_read(rows: Rows) -> int:
    """Of keys and values."""
    return sum(before + new for before, new in rows) * 2 * KV_HEADS * DIM * ITEM


def operations(new: int, before: int) -> int:
    """Of the two products with the keys and values that are seen; an addition and a multiplication are two."""
    return 4 * HEADS * DIM * (new * before + new * (new + 1) // 2)


def torch_call(new: int, before: int) -> Call:
    """Its fastest form: told that it is causal where that is all there is to tell, else with a mask."""
    q = torch.randn(1, HEADS, new, DIM)
    k, v = torch.randn(2, 1, KV_HEADS, before + new, DIM)
    if not before:
        return partial(F.scaled_dot_product_attention, q, k, v, is_causal=True, enable_gqa=True)
    mask = torch.zeros(new, before + new).masked_fill_(~torch.ones(new, before + new).tril(before).bool(), -torch.inf)
    return partial(F.scaled_dot_product_attention, q, k, v, attn_mask=mask, enable_gqa=True)


def seconds(calls: list[Call]) -> float:
    """Of one call: the median over the passes, after one that warms up."""
    passes = []
    for _ in range(PASSES + 1):
        started = perf_counter()
        for call in calls:
            call()
        passes.append((perf_counter() - started) / len(calls))
    return median(passes[1:])


@torch.inference_mode()
def decodes(pool: Pool, memory: Bandwidth, rounds: int) -> Found:
    """Bytes per second, and the same as a share of memory's."""
    steps = {f"{streams} x {context}": [(context - 1, 1)] * streams for streams in STREAMS for context in CONTEXTS}
    calls = {name: pool.calls(rows) for name, rows in steps.items()}
    found: Found = {name: [] for name in steps}
    before = memory.best()
    for _ in range(rounds):
        for name, rows in steps.items():
            rate = bytes_read(rows) / seconds(calls[name])
            after = memory.best()
            found[name].append((rate, rate / max(before, after)))
            before = after
    return found


@torch.inference_mode()
def prefills(pool: Pool, rounds: int) -> Found:
    """Operations per second, and the same as a multiple of torch's."""
    calls = [(pool.calls([(before, new)])[:1], [torch_call(new, before)]) for new, before in PREFILLS]
    found: Found = {f"{new} at {before}": [] for new, before in PREFILLS}
    for _ in range(rounds):
        for of, (new, before), (own, peer) in zip(found.values(), PREFILLS, calls, strict=True):
            own_seconds, peer_seconds = seconds(own), seconds(peer)
            of.append((operations(new, before) / own_seconds, peer_seconds / own_seconds))
    return found


def table(names: tuple[str, str, str], found: Found) -> str:
    lines = list(head(*names))
    for name, of in found.items():
        rate, share = Spread.over(rate / 1e9 for rate, _ in of), Spread.over(share for _, share in of)
        lines.append(line(name, spread(rate, 1), spread(share, 2)))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu_attention")
    parser.add_argument("--rounds", type=int, default=5, help="default: 5")
    parser.add_argument("--level", help="an instruction set (default: the best one)")
    given = parser.parse_args()
    kernels = library()
    if kernels is None:
        raise SystemExit(f"There are no C kernels to measure: {how_to_build()}.")
    if given.level and (given.level not in kernels.levels() or not kernels.set_level(given.level)):
        raise SystemExit(f"This machine does not run {given.level}; there are {', '.join(kernels.levels())}.")
    kernels.follow_torch()
    threads, machine = torch.get_num_threads(), describe()
    print(f"{machine['cpu']}, {kernels.level}, {threads} threads, torch {machine['torch']}; {given.rounds} rounds\n")
    pool = Pool.random(kernels)
    with bandwidth.reader(threads) as memory:
        print(table(("decode: streams x context", "GB/s", "of memory's"), decodes(pool, memory, given.rounds)), "\n")
    print(table(("prefill: tokens at context", "GFLOP/s", "times torch's"), prefills(pool, given.rounds)))


if __name__ == "__main__":
    main()
