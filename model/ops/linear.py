"""Multiplies by a matrix; the type of the weight selects the arithmetic."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.model.weights.forms import Weight
from octavo.model.weights.fp16 import Fp16Weight
from octavo.model.weights.grid import divisor
from octavo.model.weights.kinds import GROUP
from octavo.model.weights.stack import StackedWeight
from octavo.model.weights.tiles import TiledWeight

Linear = Callable[[Tensor, Weight], Tensor]

# Looked up once: the attribute chain costs more than a microsecond a call.
_linear_fp16 = torch.ops.quantized.linear_dynamic_fp16.default


def linear(x: Tensor, weight: Weight) -> Tensor:
    """Multiplies x [T, in] by weight [out, in] transposed; returns [T, out] in the dtype of x."""
    if isinstance(weight, Fp16Weight):
        return _linear_fp16(x, weight.packed)
    return F.linear(x, dequantised(weight, x.dtype))


def dequantised(weight: Tensor | TiledWeight | StackedWeight, dtype: torch.dtype) -> Tensor:
    """Returns the plain matrix [out, in] that activations of a dtype are multiplied with.

    For a quantised weight this is slow, but exact in the activations, and runs on every device.
    """
    return weight if isinstance(weight, Tensor) else weight.dense().to(dtype)


def linear_reference(x: Tensor, weight: Weight) -> Tensor:
    """Computes every output as a sum of its own, in float64; for tiled weights it quantises the activations, too."""
    if isinstance(weight, TiledWeight):
        return _tiled_reference(x, weight)
    dense = weight.dense() if isinstance(weight, Fp16Weight | StackedWeight) else weight
    return (x.double()[:, None, :] * dense.double()).sum(-1).to(x.dtype)


def quantise_activations(x: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Returns x [T, in] float32 as whole numbers [T, groups, 32] from -127 to 127 and scales [T, groups], in float32.

    Each group of 32 inputs of a token has a scale of its own, which depends on nothing else.
    """
    grouped = F.pad(x, (0, groups * GROUP - x.shape[1])).unflatten(1, (groups, GROUP))
    scales = grouped.abs().amax(-1) / 127
    return (grouped / divisor(scales)[..., None]).round().clamp(-127, 127), scales  # half to even


def _tiled_reference(x: Tensor, weight: TiledWeight) -> Tensor:
    """Sums whole numbers over a group, which is exact, and the groups and terms in float64."""
    held = weight.unpacked()
    rest, total = weight.gathered(x.float()), x.new_zeros((), dtype=torch.float64)
    for _ in range(weight.terms):
        quants, scales = quantise_activations(rest, held.quants.shape[1])
        rest = rest - (quants * scales[..., None]).flatten(1)[:, : x.shape[1]]
        wide = quants.double()[:, None]  # [T, 1, groups, 32]
        sums = (wide * held.quants.double()).sum(-1) * held.scales.double()  # [T, out, groups]
        if held.minima is not None:
            sums += wide.sum(-1) * held.minima.double()
        total = total + (sums * scales.double()[:, None]).sum(-1)
    return total.to(x.dtype)
