"""linear(x, weight): the type of the weight selects how it is multiplied."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.model.weights.fp16 import Fp16Weight
from octavo.model.weights.grid import divisor
from octavo.model.weights.kinds import Weight
from octavo.model.weights.row_major import RowMajorWeight
from octavo.model.weights.tiles import TILE_GROUP, GroupedWeight

Linear = Callable[[Tensor, Weight], Tensor]

# Looked up once: the attribute chain costs more than a microsecond a call.
_linear_fp16 = torch.ops.quantized.linear_dynamic_fp16.default


def linear(x: Tensor, weight: Weight) -> Tensor:
    """x [T, in] times weight [out, in] transposed -> [T, out], in the dtype of x."""
    if isinstance(weight, Fp16Weight):
        return _linear_fp16(x, weight.packed)
    if isinstance(weight, GroupedWeight | RowMajorWeight):  # slow, but exact in the activations, and on every device
        return F.linear(x, weight.dense().to(x.dtype))
    return F.linear(x, weight)


def linear_reference(x: Tensor, weight: Weight) -> Tensor:
    """Every output a sum of its own, in float64; with weights in groups, the activations are quantised too."""
    if isinstance(weight, GroupedWeight):
        return _grouped_reference(x, weight)
    dense = weight.dense() if isinstance(weight, Fp16Weight | RowMajorWeight) else weight
    return (x.double()[:, None, :] * dense.double()).sum(-1).to(x.dtype)


def quantise_activations(x: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """x [T, in] float32 as whole numbers [T, groups, 32] from -127 to 127, and their scales [T, groups], in float32.

    Each 32 inputs of a token have a scale of their own: no other token, nor another part of this one, has a say in it.
    """
    grouped = F.pad(x, (0, groups * TILE_GROUP - x.shape[1])).unflatten(1, (groups, TILE_GROUP))
    scales = grouped.abs().amax(-1) / 127
    return (grouped / divisor(scales)[..., None]).round().clamp(-127, 127), scales  # half to even


def _grouped_reference(x: Tensor, weight: GroupedWeight) -> Tensor:
    """The sums over a group are whole numbers, and exact; those over the groups and the terms are in float64."""
    held = weight.unpacked()
    rest, total = x.float(), x.new_zeros((), dtype=torch.float64)
    for _ in range(weight.terms):
        quants, scales = quantise_activations(rest, held.quants.shape[1])
        rest = rest - (quants * scales[..., None]).flatten(1)[:, : x.shape[1]]
        wide = quants.double()[:, None]  # [T, 1, groups, 32]
        sums = (wide * held.quants.double()).sum(-1) * held.scales.double()  # [T, out, groups]
        if held.mins is not None:
            sums += wide.sum(-1) * held.mins.double()
        total = total + (sums * scales.double()[:, None]).sum(-1)
    return total.to(x.dtype)
