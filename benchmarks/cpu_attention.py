"""Measures the C kernels' attention over the paged cache: `python -m benchmarks.cpu_attention --help`.

Decoding is compared with the memory: the bytes of keys and values per second, as a share of the better of the
bandwidths right before and right after. Prefill is compared with torch's scaled_dot_product_attention, over keys and
values that already lie in one piece. All cases take turns in every round.
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

from benchmarks.common.bandwidth import Bandwidth, measured_bandwidth
from benchmarks.common.batches import BLOCK, Lengths, batch_of, block_width, keys_seen
from benchmarks.common.figures import Spread, table_head, table_line
from benchmarks.common.machine import describe
from octavo.model.batch import ForwardBatch
from octavo.model.kernels.cpu.library import Library, how_to_build, library
from octavo.model.kernels.cpu.structs import PagesStruct, PassStruct
from octavo.model.kv_cache import LayerCache
from octavo.model.weights.memory import zeros_on

HEADS, KV_HEADS, DIM = 16, 4, 64  # those of benchmarks.common.checkpoint
VOCABULARY = 32000
ITEM = 4  # bytes of a float32
POOL = 1 << 29  # bytes of pages, which take turns: no cache holds them
STREAMS, CONTEXTS = (1, 16), (512, 2048, 8192)
PREFILLS = ((512, 0), (512, 1536), (2048, 0), (2048, 1536))  # new tokens, tokens before them
PASSES = 3  # over all calls, in each round

Call = Callable[[], Tensor]
Found = dict[str, list[tuple[float, float]]]  # case -> for each round a rate, and its ratio to another


@dataclass(frozen=True, slots=True)
class Pool:
    """A Pool holds random pages, and the kernels that read them."""

    kernels: Library
    pages: LayerCache

    @classmethod
    def random(cls, kernels: Library, size: int = POOL) -> "Pool":
        """Makes pages of `size` bytes in all."""
        shape = size // (2 * BLOCK * KV_HEADS * DIM * ITEM), BLOCK, KV_HEADS, DIM
        keys, values = (zeros_on(torch.device("cpu"))(shape, torch.float32).normal_() for _ in range(2))
        return cls(kernels, LayerCache(keys, values, keys.flatten(0, 1), values.flatten(0, 1)))

    def calls(self, lengths: Lengths) -> list[Call]:
        """Returns the same step over one part of the pages after the other."""
        width = block_width(lengths)
        order = torch.randperm(len(self.pages.keys), generator=torch.Generator().manual_seed(width)).int()
        tables = order[: len(order) // (len(lengths) * width) * len(lengths) * width].view(-1, len(lengths), width)
        heads = torch.randn(sum(new for new, _ in lengths), HEADS + 2 * KV_HEADS, DIM)
        batches = (batch_of(lengths, table, VOCABULARY, torch.device("cpu")) for table in tables)
        return [partial(self._run, heads, batch) for batch in batches]

    def _run(self, heads: Tensor, batch: ForwardBatch) -> Tensor:
        split = heads.split((HEADS, KV_HEADS, KV_HEADS), dim=1)
        return self.kernels.attention(split, PassStruct.of(batch, BLOCK, None), None, PagesStruct.of(self.pages))


def bytes_read(lengths: Lengths) -> int:
    """Returns the bytes of keys and values that a step reads."""
    return sum(end for _, end in lengths) * 2 * KV_HEADS * DIM * ITEM


def operations(new: int, before: int) -> int:
    """Returns the additions and multiplications of the two products with the keys and values that are seen."""
    return 4 * HEADS * DIM * keys_seen([(new, before + new)])


def torch_call(new: int, before: int) -> Call:
    """Returns torch's fastest call: without a mask if no token comes before the new ones, else with one."""
    q = torch.randn(1, HEADS, new, DIM)
    k, v = torch.randn(2, 1, KV_HEADS, before + new, DIM)
    if not before:
        return partial(F.scaled_dot_product_attention, q, k, v, is_causal=True, enable_gqa=True)
    mask = torch.zeros(new, before + new).masked_fill_(~torch.ones(new, before + new).tril(before).bool(), -torch.inf)
    return partial(F.scaled_dot_product_attention, q, k, v, attn_mask=mask, enable_gqa=True)


def seconds(calls: list[Call]) -> float:
    """Returns the seconds of one call: the median over the passes, after one that warms up."""
    passes = []
    for _ in range(PASSES + 1):
        started = perf_counter()
        for call in calls:
            call()
        passes.append((perf_counter() - started) / len(calls))
    return median(passes[1:])


@torch.inference_mode()
def decodes(pool: Pool, memory: Bandwidth, rounds: int) -> Found:
    """Returns bytes per second, and their share of the memory's bandwidth."""
    cases = {f"{streams} x {context}": [(1, context)] * streams for streams in STREAMS for context in CONTEXTS}
    calls = {name: pool.calls(lengths) for name, lengths in cases.items()}
    found: Found = {name: [] for name in cases}
    before = memory.best()
    for _ in range(rounds):
        for name, lengths in cases.items():
            rate = bytes_read(lengths) / seconds(calls[name])
            after = memory.best()
            found[name].append((rate, rate / max(before, after)))
            before = after
    return found


@torch.inference_mode()
def prefills(pool: Pool, rounds: int) -> Found:
    """Returns operations per second, and their ratio to torch's."""
    calls = [(pool.calls([(new, before + new)])[:1], [torch_call(new, before)]) for new, before in PREFILLS]
    found: Found = {f"{new} at {before}": [] for new, before in PREFILLS}
    for _ in range(rounds):
        for figures, (new, before), (own, peer) in zip(found.values(), PREFILLS, calls, strict=True):
            own_seconds, peer_seconds = seconds(own), seconds(peer)
            figures.append((operations(new, before) / own_seconds, peer_seconds / own_seconds))
    return found


def table(columns: tuple[str, str, str], found: Found) -> str:
    """Returns a table of medians and ranges over the rounds."""
    lines = list(table_head(*columns))
    for name, figures in found.items():
        rate, ratio = Spread.over(rate / 1e9 for rate, _ in figures), Spread.over(ratio for _, ratio in figures)
        lines.append(table_line(name, rate.cell(1), ratio.cell(2)))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cpu_attention", description="Measures the C kernels' attention."
    )
    parser.add_argument("--rounds", type=int, default=5, help="how often everything is measured (default: 5)")
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
    with measured_bandwidth(threads) as memory:
        print(table(("decode: streams x context", "GB/s", "of memory's"), decodes(pool, memory, given.rounds)), "\n")
    print(table(("prefill: tokens at context", "GFLOP/s", "times torch's"), prefills(pool, given.rounds)))


if __name__ == "__main__":
    main()
