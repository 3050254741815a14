"""Computes the router of a sparse layer with the norm before it: gate logits, the top k of them, and their softmax.

The floor is the norm's (norm.py) plus the gate's matrix, which is 64 KB for 8 experts of 4096 inputs; it comes from
memory once, and from L2 for each further row. For up to some hundred tokens the time is one launch and one trip to
memory. So everything that a row needs is loaded before anything is computed. A row is one program, and its choice
depends on no other row.

Logits stay float32, whereas the plain path rounds them to the activations' dtype: then the choice between two nearly
equal experts does not depend on how bfloat16 rounds. Among equal logits the lowest expert comes first (torch.topk
leaves this order open).
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.model.kernels.gpu.norm import add_norm_reference, load_sum, normalise

MOST_AT_ONCE = 8  # gate rows in registers; 8 rows of 4096 inputs in 16 bits take 32 registers a thread of 16 warps


@dataclass(frozen=True, slots=True)
class Routed:
    """Routed holds the rows of a forward pass after the router."""

    x: Tensor  # [T, H], the residual stream
    normed: Tensor  # [T, H], the experts' input
    weights: Tensor  # [T, k] float32, the sum of each row is 1
    ids: Tensor  # [T, k] int32; every id is an expert's, even in rows of NaN


def route(x: Tensor, delta: Tensor | None, norm_weight: Tensor, eps: float, gate: Tensor, top_k: int) -> Routed:
    """Routes x + delta, both [T, H], with norm_weight [H] and gate [E, H]; delta may be None.

    All tensors are contiguous and of one dtype, and E >= top_k.
    """
    tokens, hidden = x.shape
    total = x if delta is None else torch.empty_like(x)
    routed = Routed(
        total,
        torch.empty_like(x),
        x.new_empty(tokens, top_k, dtype=torch.float32),
        x.new_empty(tokens, top_k, dtype=torch.int32),
    )
    padded, block = triton.next_power_of_2(gate.shape[0]), triton.next_power_of_2(hidden)
    _route[(tokens,)](
        x,
        delta,
        norm_weight,
        gate,
        routed.x,
        routed.normed,
        routed.weights,
        routed.ids,
        eps,
        HIDDEN=hidden,
        BLOCK=block,
        EXPERTS=gate.shape[0],
        PADDED=padded,
        EXPERTS_AT_ONCE=min(padded, MOST_AT_ONCE),
        TOP_K=top_k,
        CHOICES=triton.next_power_of_2(top_k),
        num_warps=min(max(block // 256, 1), 16),
    )
    return routed


@triton.jit
def _route(
    x_ptr,
    delta_ptr,
    norm_ptr,
    gate_ptr,
    total_ptr,
    normed_ptr,
    weights_ptr,
    ids_ptr,
    eps,
    HIDDEN: tl.constexpr,
    BLOCK: tl.constexpr,
    EXPERTS: tl.constexpr,
    PADDED: tl.constexpr,
    EXPERTS_AT_ONCE: tl.constexpr,
    TOP_K: tl.constexpr,
    CHOICES: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < HIDDEN
    at = token * HIDDEN + columns
    norm_weight = tl.load(norm_ptr + columns, mask=inside, other=0).to(tl.float32)
    gate = _gate_rows(gate_ptr, 0, HIDDEN, BLOCK, EXPERTS, EXPERTS_AT_ONCE)
    row = load_sum(x_ptr, delta_ptr, at, inside)
    if delta_ptr is not None:
        tl.store(total_ptr + at, row.to(total_ptr.dtype.element_ty), mask=inside)
    normed = normalise(row, norm_weight, eps, HIDDEN, normed_ptr.dtype.element_ty)
    tl.store(normed_ptr + at, normed.to(normed_ptr.dtype.element_ty), mask=inside)

    experts = tl.arange(0, PADDED)
    logits = tl.full((PADDED,), float("-inf"), tl.float32)
    for first in tl.static_range(0, PADDED, EXPERTS_AT_ONCE):
        part = tl.sum(gate.to(tl.float32) * normed[None, :], 1)  # [EXPERTS_AT_ONCE]
        here = experts[:, None] == first + tl.arange(0, EXPERTS_AT_ONCE)[None, :]  # [PADDED, EXPERTS_AT_ONCE]
        placed = tl.sum(tl.where(here, part[None, :], 0.0), 1)
        logits = tl.where((experts >= first) & (experts < first + EXPERTS_AT_ONCE), placed, logits)
        if first + EXPERTS_AT_ONCE < PADDED:
            gate = _gate_rows(gate_ptr, first + EXPERTS_AT_ONCE, HIDDEN, BLOCK, EXPERTS, EXPERTS_AT_ONCE)
    # A NaN counts as -inf. If all logits are NaN, every choice is the lowest expert, and the weights are NaN.
    logits = tl.where((experts < EXPERTS) & (logits == logits), logits, float("-inf"))

    weights, ids = _choose(logits, PADDED, TOP_K, CHOICES)
    choices = tl.arange(0, CHOICES)
    tl.store(weights_ptr + token * TOP_K + choices, weights, mask=choices < TOP_K)
    tl.store(ids_ptr + token * TOP_K + choices, ids, mask=choices < TOP_K)


@triton.jit
def _gate_rows(
    gate_ptr, first, HIDDEN: tl.constexpr, BLOCK: tl.constexpr, EXPERTS: tl.constexpr, EXPERTS_AT_ONCE: tl.constexpr
):
    """Loads the gate's rows first : first + EXPERTS_AT_ONCE in their own dtype, [EXPERTS_AT_ONCE, BLOCK]."""
    expert = first + tl.arange(0, EXPERTS_AT_ONCE)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    return tl.load(gate_ptr + expert * HIDDEN + column, mask=(expert < EXPERTS) & (column < HIDDEN), other=0)


@triton.jit
def _choose(logits, PADDED: tl.constexpr, TOP_K: tl.constexpr, CHOICES: tl.constexpr):
    """Picks the largest of logits [PADDED], one by one; returns weights and ids [CHOICES].

    The softmax over all experts, renormalised over the chosen ones, equals the softmax over the chosen ones alone.
    """
    experts, choices = tl.arange(0, PADDED), tl.arange(0, CHOICES)
    chosen = tl.full((CHOICES,), float("-inf"), tl.float32)
    ids = tl.zeros((CHOICES,), tl.int32)
    for choice in tl.static_range(TOP_K):
        best, expert = tl.max(logits, 0, return_indices=True, return_indices_tie_break_left=True)
        chosen = tl.where(choices == choice, best, chosen)
        ids = tl.where(choices == choice, expert, ids)
        logits = tl.where(experts == expert, float("-inf"), logits)
    shares = tl.exp(chosen - tl.max(chosen, 0))
    return shares / tl.sum(shares, 0), ids


def route_reference(
    x: Tensor, delta: Tensor | None, norm_weight: Tensor, eps: float, gate: Tensor, top_k: int
) -> Routed:
    """Does what route does, in float64 from the normed rows on, with the softmax over all experts."""
    total, normed = add_norm_reference(x, delta, norm_weight, eps)
    shares = (normed.double() @ gate.double().T).softmax(-1)  # [T, E]
    ids = shares.sort(dim=-1, descending=True, stable=True).indices[:, :top_k]
    weights = shares.gather(1, ids)
    return Routed(total, normed, (weights / weights.sum(-1, keepdim=True)).float(), ids.int())
