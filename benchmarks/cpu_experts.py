"""Measures the C kernels' experts in the shapes of released models: `python -m benchmarks.cpu_experts --help`.

A call is the experts' half of one decoder layer: norm, router and experts. Its bytes are those of the router and of the
experts that it chose. They are divided by its time, and then by the better of the memory's bandwidths right before and
right after. Each call has other tokens and another layer than the one before, so that no cache holds what it reads. All
cases of a shape take turns in every round.
"""

import argparse
from dataclasses import dataclass, replace
from itertools import count, cycle
from statistics import median
from time import perf_counter

import torch
from torch import Tensor

from benchmarks.common.bandwidth import Bandwidth, measured_bandwidth
from benchmarks.common.figures import Spread, table_head, table_line
from benchmarks.common.machine import describe
from octavo.model.kernels.cpu.decoder import experts_struct
from octavo.model.kernels.cpu.library import Library, how_to_build, library
from octavo.model.kernels.cpu.structs import ExpertsStruct
from octavo.model.layers import RMSNorm
from octavo.model.moe import MoEBlock, Router
from octavo.model.weights.forms import ExpertWeights
from octavo.model.weights.kinds import INT4, INT8, Kind, Offset, Scale
from octavo.model.weights.memory import HugePages, Zeros
from octavo.model.weights.parts import Parts
from octavo.model.weights.tiles import PANEL, TiledWeight, TileLayout

POOL = 3 << 29  # bytes of weights of one shape and kind, about; the layers take turns
TOKENS = (1, 2, 4, 8)
CALLS = 12  # of each case in a round; the median counts


@dataclass(frozen=True, slots=True)
class Shape:
    """A Shape is that of a model's sparse layers."""

    experts: int
    top_k: int
    hidden: int
    width: int  # of an expert


SHAPES = {
    "qwen3-30b-a3b": Shape(128, 8, 2048, 768),
    "olmoe-1b-7b": Shape(64, 8, 2048, 1024),
    "gpt-oss-20b": Shape(32, 4, 2880, 2880),
    "mixtral-8x7b": Shape(8, 2, 4096, 14336),
}
KINDS = {
    "int8": INT8,
    "int4": INT4,
    "4 bits, groups of 128": Kind(tuple(range(16)), 128, Scale.FLOAT16, Offset.ZERO),
}


@dataclass(frozen=True, slots=True)
class Layer:
    """A Layer is a sparse layer of random weights, as the kernels take it."""

    block: MoEBlock  # owns the memory that the struct points into
    norm: RMSNorm
    struct: ExpertsStruct

    @classmethod
    def random(cls, shape: Shape, kind: Kind, zeros: Zeros) -> "Layer":
        gate_up = TileLayout(kind, (2 * shape.width, shape.hidden), interleaved=True)
        down = TileLayout(kind, (shape.hidden, shape.width))
        panels = _random_panel(kind, shape.hidden), _random_panel(kind, shape.width)
        pairs = [(_copies(gate_up, panels[0], zeros), _copies(down, panels[1], zeros)) for _ in range(shape.experts)]
        first, second = zip(*pairs, strict=True)
        router = Router(torch.randn(shape.experts, shape.hidden) / shape.hidden**0.5, shape.top_k)
        block, norm = MoEBlock(router, ExpertWeights(first, second)), RMSNorm.create(torch.ones(shape.hidden), 1e-6)
        struct = experts_struct(block, norm)
        assert struct is not None
        return cls(block, norm, struct)

    @property
    def nbytes(self) -> int:
        """Returns the bytes of all experts."""
        return sum(each.nbytes for side in (self.block.experts.gate_up, self.block.experts.down) for each in side)

    def bytes_read(self, ids: Tensor) -> int:
        """Returns the bytes of the router, and of the experts among the chosen ids."""
        assert self.block.router is not None
        chosen, held = ids.unique().tolist(), self.block.experts
        return self.block.router.weight.nbytes + sum(held.gate_up[n].nbytes + held.down[n].nbytes for n in chosen)


def _copies(layout: TileLayout, panel: Tensor, zeros: Zeros) -> TiledWeight:
    """Returns a matrix all of whose panels are copies of one; its rows fill them without padding."""
    weight = TiledWeight.empty(layout, zeros)
    weight.memory[:] = panel
    return weight


def _random_panel(kind: Kind, inputs: int) -> Tensor:
    """Returns the bytes of a panel [1, bytes] of random weights, with which results are about as large as inputs."""
    groups = -(-inputs // kind.group)
    scales = torch.randint(64, 128, (PANEL, groups)).to(kind.scale_type)
    offsets = torch.full((PANEL, groups), 8, dtype=torch.uint8) if kind.offset is Offset.ZERO else None
    codes = torch.randint(0, 2**kind.bits, (PANEL, inputs), dtype=torch.uint8)
    weight = TiledWeight.empty(TileLayout(kind, (PANEL, inputs)), HugePages().zeros)
    parts = Parts(codes, torch.ones(PANEL), scales, offsets, None)
    weight.put(parts, 0)
    size = weight.dense().std() * inputs**0.5
    weight.put(replace(parts, factors=torch.ones(PANEL) / size), 0)
    return weight.memory


class Case:
    """A Case is one shape, one kind and a number of tokens."""

    def __init__(self, kernels: Library, layers: list[Layer], tokens: int) -> None:
        """Draws tokens for all of its calls."""
        self._kernels, self._layers = kernels, cycle(layers)
        self._states = (torch.randn(tokens, layers[0].struct.hidden) for _ in count())

    def bytes_per_second(self) -> float:
        """Returns the median of several calls, after one that warms up."""
        rates = []
        for _ in range(CALLS + 1):
            x, layer = next(self._states), next(self._layers)
            started = perf_counter()
            ids, _ = self._kernels.experts_layer(x, layer.struct)
            seconds = perf_counter() - started
            rates.append(layer.bytes_read(ids) / seconds)
        return median(rates[1:])


def layers_of(shape: Shape, kind: Kind, pool: int) -> list[Layer]:
    """Returns layers that take at least `pool` bytes."""
    zeros, layers = HugePages().zeros, list[Layer]()
    while sum(layer.nbytes for layer in layers) < pool:
        layers.append(Layer.random(shape, kind, zeros))
    return layers


@torch.inference_mode()
def measure(cases: dict[str, Case], memory: Bandwidth, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Returns for each case and round the bytes per second, and their share of the memory's bandwidth."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
    before = memory.best()
    for _ in range(rounds):
        for name, case in cases.items():
            rate = case.bytes_per_second()
            after = memory.best()
            found[name].append((rate, rate / max(before, after)))
            before = after
    return found


def table(title: str, found: dict[str, list[tuple[float, float]]]) -> str:
    """Returns a table of medians and ranges over the rounds."""
    lines = list(table_head(title, "GB/s", "of memory's"))
    for name, figures in found.items():
        rate, share = Spread.over(rate / 1e9 for rate, _ in figures), Spread.over(share for _, share in figures)
        lines.append(table_line(name, rate.cell(1), share.cell(2)))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cpu_experts",
        description="Measures how near the C kernels' experts come to the memory's bandwidth.",
    )
    parser.add_argument("shapes", nargs="*", metavar="SHAPE", help=f"{', '.join(SHAPES)} (default: all)")
    parser.add_argument("--kind", action="append", choices=list(KINDS), help="of the weights (default: each in turn)")
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS, help="of a call (default: 1 2 4 8)")
    parser.add_argument("--rounds", type=int, default=5, help="how often everything is measured (default: 5)")
    given = parser.parse_args()
    if unknown := set(given.shapes) - set(SHAPES):
        parser.error(f"there is no shape {unknown.pop()}: choose from {', '.join(SHAPES)}")
    kernels = library()
    if kernels is None:
        raise SystemExit(f"There are no C kernels to measure: {how_to_build()}.")
    kernels.follow_torch()
    threads, machine = torch.get_num_threads(), describe()
    print(f"{machine['cpu']}, {kernels.level}, {threads} threads; {given.rounds} rounds")
    with measured_bandwidth(threads) as memory:
        for name in given.shapes or SHAPES:
            for kind in given.kind or KINDS:
                layers = layers_of(SHAPES[name], KINDS[kind], POOL)
                cases = {f"{tokens} tokens": Case(kernels, layers, tokens) for tokens in given.tokens}
                print(f"\n{table(f'{name}, {kind}', measure(cases, memory, given.rounds))}", flush=True)


if __name__ == "__main__":
    main()
