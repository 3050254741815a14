"""Holds operations whose rounding does not depend on the batch: a row's bits are the same in any company.

Matrix products are compiled for blocks of rows, and the last, smaller block may add up in another order. The C kernels
are free of that by construction (model/kernels/cpu/octavo.h); this file keeps torch free of it.
"""

from enum import Enum
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.model.batch import ForwardBatch
from octavo.model.kv_cache import KVCache
from octavo.model.ops.attention import AttentionPlan, attention, plan_attention
from octavo.model.ops.experts import experts
from octavo.model.ops.linear import dequantised, linear
from octavo.model.ops.seams import TORCH, Ops
from octavo.model.weights.forms import Weight
from octavo.model.weights.fp16 import Fp16Weight
from octavo.model.weights.kinds import Kind
from octavo.model.weights.precision import Precision

LARGE = 1024  # outputs: more than a router has
BLOCK_ROWS = 6  # rows in a block of FBGEMM's float16 product with AVX2


class Invariance(Enum):
    """Says how far the batch is kept out of a row's rounding, where no C kernel does so by itself."""

    NONE = "none"
    CHEAP = "cheap"  # wherever it costs little: not in products with large plain tensors
    FULL = "full"  # everywhere, whatever it costs


def costs_little(precision: Precision) -> bool:
    """Returns whether a CPU that has the C kernels loses less than 5 % with Invariance.CHEAP.

    With float16, 2 % were measured. Beside quantised weights, only the routers and gates of some families are left.
    """
    if isinstance(precision.experts, Kind):
        return True
    return precision.experts is precision.linears is Fp16Weight and _rows_are_alone()


def _rows_are_alone() -> bool:
    """Returns whether all blocks of FBGEMM's float16 product add up in the same order."""
    return torch.backends.cpu.get_cpu_capability() == "AVX512"


def invariant_linear(x: Tensor, weight: Weight) -> Tensor:
    """Does what model.ops.linear does, and treats each row as if it were alone."""
    if not isinstance(weight, Fp16Weight):
        plain = dequantised(weight, x.dtype)  # once for all rows
        return torch.cat([linear(row, plain) for row in x.split(1)])
    if _rows_are_alone():
        return linear(x, weight)
    rows = x.shape[0]
    return linear(F.pad(x, (0, 0, 0, -rows % BLOCK_ROWS)), weight)[:rows]


def cheap_linear(x: Tensor, weight: Weight) -> Tensor:
    """Does what invariant_linear does, but takes all rows at once for a large matrix that float16 could not hold.

    One by one, the rows of a prompt would each read such a matrix from memory.
    """
    is_large = not isinstance(weight, Fp16Weight) and weight.shape[0] > LARGE
    return linear(x, weight) if is_large else invariant_linear(x, weight)


def plan_rows(batch: ForwardBatch, cache: KVCache, window: int | None) -> AttentionPlan:
    """Plans every new token by itself, so that the shapes of its products depend on its position alone."""
    return plan_attention(batch, cache, window, query_rows=1)


OPS: dict[Invariance, Ops] = {
    Invariance.NONE: TORCH,
    Invariance.CHEAP: Ops(plan_rows, attention, partial(experts, product=cheap_linear), cheap_linear),
    Invariance.FULL: Ops(plan_rows, attention, partial(experts, product=invariant_linear), invariant_linear),
}
