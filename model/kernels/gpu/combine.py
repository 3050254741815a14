"""Adds the outputs of the chosen experts to the residual stream: one program takes one row, in a fixed order.

    partials [S, T * k, H]     x' = x + sum over c of weights[t, c] * (sum over s of partials[s, t * k + c] + bias)

The bias is that of the chosen expert, if experts have any. Splits are added first, then the bias, then choices, each in
their order, in float32. The sum is rounded once, with x in it. There are
no atomics, so a row's bits depend neither on other rows nor on the order in which programs run. The next layer's norm
is computed in the same launch, since the row is in registers already.

The floor is to read S * k rows of 4 H bytes. For 64 tokens of 4096, two choices and four splits this is 8.4 MB, 2.8 us
at 3 TB/s. A lone token is one program on one SM, which takes 128 KB in a microsecond or two.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.model.kernels.gpu.norm import add_norm_reference, normalise


@dataclass(frozen=True, slots=True)
class Biases:
    """Biases belong to the outputs of experts, and are weighted like these."""

    ids: Tensor  # [T, k] int32, the chosen experts
    rows: Tensor  # [E, H]

    def chosen(self) -> Tensor:
        """Returns the biases of all choices, [T, k, H]."""
        return self.rows[self.ids.long()]


def combine(
    partials: Tensor, weights: Tensor, x: Tensor, norm_weight: Tensor | None, eps: float, biases: Biases | None = None
) -> tuple[Tensor, Tensor | None]:
    """Returns x' [T, H] and, with a norm_weight [H], x' normed; x is [T, H], partials [S, T * k, H], weights [T, k].

    Row t * k + c of partials is token t's choice c. All are contiguous; partials and weights are float32, x and
    norm_weight of one dtype.
    """
    tokens, hidden = x.shape
    ids, rows = (None, None) if biases is None else (biases.ids, biases.rows)
    total = torch.empty_like(x)
    normed = None if norm_weight is None else torch.empty_like(x)
    block = triton.next_power_of_2(hidden)
    _combine[(tokens,)](
        partials,
        weights,
        ids,
        rows,
        x,
        norm_weight,
        total,
        normed,
        eps,
        partials.shape[1],
        SPLITS=partials.shape[0],
        TOP_K=weights.shape[1],
        HIDDEN=hidden,
        BLOCK=block,
        # More threads than in norm.py, since one row must keep an SM's loads under way.
        num_warps=min(max(block // 256, 1), 16),
    )
    return total, normed


@triton.jit(do_not_specialize=["num_pairs"])
def _combine(
    partials_ptr,
    weights_ptr,
    ids_ptr,
    biases_ptr,
    x_ptr,
    norm_ptr,
    total_ptr,
    normed_ptr,
    eps,
    num_pairs,
    SPLITS: tl.constexpr,
    TOP_K: tl.constexpr,
    HIDDEN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < HIDDEN
    at = token * HIDDEN + columns
    row = tl.load(x_ptr + at, mask=inside, other=0).to(tl.float32)
    outputs = tl.zeros((BLOCK,), tl.float32)
    # Loads of more than two choices at once would not fit the registers.
    for choice in tl.range(0, TOP_K, loop_unroll_factor=2):
        pair = token * TOP_K + choice
        output = tl.load(partials_ptr + pair * HIDDEN + columns, mask=inside, other=0)
        for split in tl.static_range(1, SPLITS):
            output += tl.load(partials_ptr + (split * num_pairs + pair) * HIDDEN + columns, mask=inside, other=0)
        if biases_ptr is not None:
            bias = tl.load(ids_ptr + pair).to(tl.int64) * HIDDEN + columns
            output += tl.load(biases_ptr + bias, mask=inside, other=0).to(tl.float32)
        outputs += tl.load(weights_ptr + pair) * output
    total = (row + outputs).to(total_ptr.dtype.element_ty)
    tl.store(total_ptr + at, total, mask=inside)
    if norm_ptr is not None:
        norm_weight = tl.load(norm_ptr + columns, mask=inside, other=0).to(tl.float32)
        normed = normalise(total.to(tl.float32), norm_weight, eps, HIDDEN, normed_ptr.dtype.element_ty)
        tl.store(normed_ptr + at, normed.to(normed_ptr.dtype.element_ty), mask=inside)


def combine_reference(
    partials: Tensor, weights: Tensor, x: Tensor, norm_weight: Tensor | None, eps: float, biases: Biases | None = None
) -> tuple[Tensor, Tensor | None]:
    """Computes what combine does, in float64."""
    outputs = partials.double().sum(0).unflatten(0, weights.shape)  # [T, k, H]
    if biases is not None:
        outputs += biases.chosen().double()
    total = (x.double() + (weights.double()[..., None] * outputs).sum(1)).to(x.dtype)
    return total, None if norm_weight is None else add_norm_reference(total, None, norm_weight, eps)[1]
