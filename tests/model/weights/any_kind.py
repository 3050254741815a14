"""Makes matrices of every kind of weight, those that only checkpoints bring among them."""

from dataclasses import replace

import torch
from torch import Tensor

from octavo.model.weights.kinds import EVEN4, INT4, INT8, INT8_FINE, SUPER, Kind, Offset, Scale
from octavo.model.weights.memory import zeros_on
from octavo.model.weights.parts import Parts
from octavo.model.weights.tiles import TiledWeight, TileLayout

UNSIGNED4 = tuple(range(16))
MXFP4 = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
NF4 = (-127, -88, -67, -50, -36, -23, -12, 0, 10, 20, 31, 43, 56, 71, 92, 127)

NAMED = {
    "int8": INT8,
    "fine int8": INT8_FINE,
    "int4": INT4,
    "even4": EVEN4,
    "gptq, groups of 128": Kind(UNSIGNED4, 128, Scale.FLOAT16, Offset.ZERO),
    "gptq, groups of 256": Kind(UNSIGNED4, 256, Scale.FLOAT32, Offset.ZERO),
    "gptq, groups of 512": Kind(UNSIGNED4, 512, Scale.BFLOAT16, Offset.ZERO),
    "gptq, groups of 1024": Kind(UNSIGNED4, 1024, Scale.FLOAT16, Offset.ZERO),
    "gptq, 8 bits": Kind(None, 64, Scale.FLOAT16, Offset.ZERO),
    "gptq, 8 bits, groups of 128": Kind(None, 128, Scale.FLOAT32, Offset.ZERO),
    "gptq, channels": Kind(UNSIGNED4, 0, Scale.NONE, Offset.ZERO),
    "8 bits, channels": Kind(None, 0, Scale.NONE),
    "8 bits, channels with zeros": Kind(None, 0, Scale.NONE, Offset.ZERO),
    "8 bits, float32": Kind(None, 128, Scale.FLOAT32),
    "bfloat16, groups of 96": Kind(tuple(range(-8, 8)), 96, Scale.BFLOAT16),
    "mxfp4": Kind(MXFP4, 32, Scale.E8M0),
    "nf4": Kind(NF4, 64, Scale.BFLOAT16),
    "q4_k": Kind(UNSIGNED4, 32, Scale.INT8_OF_256, Offset.MINIMUM),
    "q5_k": Kind(None, 32, Scale.INT8_OF_256, Offset.MINIMUM),
    "q4_1": Kind(UNSIGNED4, 32, Scale.FLOAT16, Offset.MINIMUM),
    "minima in bfloat16": Kind(None, 32, Scale.BFLOAT16, Offset.MINIMUM),
    "minima in float32": Kind(UNSIGNED4, 64, Scale.FLOAT32, Offset.MINIMUM),
    "minima of channels": Kind(UNSIGNED4, 0, Scale.NONE, Offset.MINIMUM),
    "two levels without minima": Kind(NF4, 128, Scale.INT8_OF_256),
    "two levels and a zero": Kind(None, 64, Scale.INT8_OF_256, Offset.ZERO),
    "a zero beside int8": Kind(NF4, 32, Scale.INT8, Offset.ZERO),
    "a zero beside e8m0": Kind(UNSIGNED4, 32, Scale.E8M0, Offset.ZERO),
}
KINDS, NAMES = list(NAMED.values()), list(NAMED)


def random_parts(kind: Kind, rows: int, columns: int) -> Parts:
    """Returns random parts, whose weights are about as large as a model's."""
    groups = -(-columns // kind.group) if kind.group else 1
    numbers = {
        torch.float32: lambda: torch.randn(rows, groups) / 16,
        torch.float16: lambda: (torch.randn(rows, groups) / 16).half(),
        torch.bfloat16: lambda: (torch.randn(rows, groups) / 16).bfloat16(),
        torch.int8: lambda: torch.randint(-64, 64, (rows, groups), dtype=torch.int8),
        torch.uint8: lambda: torch.randint(119, 124, (rows, groups), dtype=torch.uint8),
    }
    scales = None if kind.scale_type is None else numbers[kind.scale_type]()
    offsets = None
    if kind.has_channel_offset:
        offsets = torch.randint(0, 16, (rows, 1)).float()
    elif kind.offset_type is not None:
        bytes_ = lambda: torch.randint(0, 16, (rows, groups), dtype=torch.uint8) + kind.bias  # noqa: E731
        offsets = bytes_() if kind.offset_type == torch.uint8 else numbers[kind.offset_type]()
    coarse = None
    if kind.has_coarse:
        count = 2 if kind.offset is Offset.MINIMUM else 1
        coarse = (torch.rand(rows, -(-columns // SUPER), count) / 64).half()
    codes = torch.randint(0, 2**kind.bits, (rows, columns), dtype=torch.uint8)
    parts = Parts(codes, torch.ones(rows), scales, offsets, coarse)
    width = -(-columns // kind.unit) * kind.unit
    held = parts.padded(kind, width).unpacked(kind)
    size = (held.quants * held.scales[..., None]).square().mean().sqrt()
    return replace(parts, factors=(0.5 + torch.rand(rows)) * 0.1 / size)


def random_order(inputs: int) -> Tensor:
    return torch.randperm(inputs, dtype=torch.int32)


def random_weight(
    kind: Kind, shape: tuple[int, int], interleaved: bool = False, terms: int = 1, ordered: bool = False
) -> TiledWeight:
    """Returns a random matrix [out, in]."""
    order = random_order(shape[1]) if ordered else None
    weight = TiledWeight.empty(TileLayout(kind, shape, interleaved), zeros_on(torch.device("cpu")), terms, order)
    weight.put(random_parts(kind, *shape), 0)
    return weight
