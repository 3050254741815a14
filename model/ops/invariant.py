"""Operations whose rounding does not depend on the batch: a row's bits are its own, whoever shares the step with it.

Matrix products are compiled for blocks of rows, and the last, smaller block may add up in another order. What the C
kernels compute is free of that by construction (model/kernels/cpu/octavo.h); here is how torch is kept free of it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from model.batch import ForwardBatch
from model.kv_cache import KVCache
from model.ops.attention import AttentionPlan, attention, plan_attention
from model.ops.experts import choose
from model.ops.linear import linear
from model.ops.seams import Ops
from model.quantization import ExpertWeights, Fp16Weight, Weight

BLOCK_ROWS = 6  # of FBGEMM's float16 product with AVX2; with AVX512, all its blocks add up in the same order


def invariant_linear(x: Tensor, weight: Weight) -> Tensor:
    """As model.ops.linear, each row as if it were alone."""
    if not isinstance(weight, Fp16Weight):
        return torch.cat([linear(row, weight) for row in x.split(1)])
    if torch.backends.cpu.get_cpu_capability() == "AVX512":
        return linear(x, weight)
    rows = x.shape[0]
    return linear(F.pad(x, (0, 0, 0, -rows % BLOCK_ROWS)), weight)[:rows]


def invariant_experts(x: Tensor, ids: Tensor, weights: Tensor, expert_weights: ExpertWeights) -> Tensor:
    """As model.ops.experts; the sum over a token's choices is made of elementwise operations, in their order."""
    chosen = choose(x, ids, expert_weights, invariant_linear)  # [T, k, H]
    out = torch.zeros_like(x, dtype=torch.float32)
    for share, output in zip(weights.unbind(1), chosen.unbind(1), strict=True):
        out += share[:, None] * output
    return out.to(x.dtype)


def plan_rows(batch: ForwardBatch, cache: KVCache, window: int | None) -> AttentionPlan:
    """Every new token by itself: what it sees, and with it the shape of its products, is its position's alone."""
    return plan_attention(batch, cache, window, query_rows=1)


INVARIANT = Ops(plan_rows, attention, invariant_experts, invariant_linear)
