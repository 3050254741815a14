"""linear(x, weight): the type of the weight selects how it is multiplied."""

import torch
import torch.nn.functional as F
from torch import Tensor

from model.quantization import Fp16Weight, Weight

# Looked up once: the attribute chain costs more than a microsecond a call.
_linear_fp16 = torch.ops.quantized.linear_dynamic_fp16.default


def linear(x: Tensor, weight: Weight) -> Tensor:
    """x [T, in] times weight [out, in] transposed -> [T, out], in the dtype of x."""
    if isinstance(weight, Fp16Weight):
        return _linear_fp16(x, weight.packed)
    return F.linear(x, weight)


def linear_reference(x: Tensor, weight: Weight) -> Tensor:
    """Every output a sum of its own, in float64."""
    dense = weight.dense() if isinstance(weight, Fp16Weight) else weight
    return (x.double()[:, None, :] * dense.double()).sum(-1).to(x.dtype)
