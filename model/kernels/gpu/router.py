"""Computes the router of a sparse layer with the norm before it: gate logits, the top k of them, and their shares.

Up to eight experts one launch does all of it: a program takes a row, and holds the gate's eight rows in registers. The
floor is the norm's (norm.py) plus the gate's matrix, which is 64 KB for 8 experts of 4096 inputs; it comes from memory
once, and from L2 for each further row. For up to some hundred tokens the time is one launch and one trip to memory. So
everything that a row needs is loaded before anything is computed.

The gate of more experts is too large for one program: 512 KB for 128 experts of 2048 inputs, which one multiprocessor
reads in 5 us. There are three launches then:

    add_norm    a program takes a row                             normed [T, H]
    _logits     16 rows x 32 experts x a quarter of the inputs    parts [4, T, E], on the matrix units
    _pick       a program takes four rows and adds up the parts   weights, ids [T, k]

The cut of the inputs is the same for any number of tokens, so a row's choice depends on no other row.

Logits stay float32, whereas the plain path rounds them to the activations' dtype: then the choice between two nearly
equal experts does not depend on how bfloat16 rounds. Among equal logits the lowest expert comes first (torch.topk
leaves this order open).
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.model.kernels.gpu.norm import Delta, add_norm, add_norm_reference, delta_arguments, load_sum, normalise
from octavo.model.moe import Router

MOST_AT_ONCE = 8  # gate rows in registers; 8 rows of 4096 inputs in 16 bits take 32 registers a thread of 16 warps
ROWS, EXPERTS, INPUTS, SPLITS = 16, 32, 128, 4  # of the tiles of _logits, and its cuts of the inputs
ROWS_TO_PICK = 4


@dataclass(frozen=True, slots=True)
class Routed:
    """Routed holds the rows of a forward pass after the router."""

    x: Tensor  # [T, H], the residual stream
    normed: Tensor  # [T, H], the experts' input
    weights: Tensor  # [T, k] float32, as Router defines them
    ids: Tensor  # [T, k] int32; every id is an expert's, even in rows of NaN


def route(
    x: Tensor, delta: Delta | None, norm_weight: Tensor, eps: float, router: Router, addend: Tensor | None = None
) -> Routed:
    """Routes x + delta, where x is [T, H], with norm_weight [H]. The addend [T, E] changes the logits.

    All tensors are contiguous and of one dtype, except the router's bias and the addend, which are float32.
    """
    if router.weight.shape[0] <= MOST_AT_ONCE and addend is None:
        return _route_to_few(x, delta, norm_weight, eps, router)
    total, normed = add_norm(x, delta, norm_weight, eps)
    parts = _gate_logits(normed, router.weight)
    if addend is not None:
        parts[0] += addend
    return Routed(total, normed, *_pick_experts(parts, router))


def _route_to_few(x: Tensor, delta: Delta | None, norm_weight: Tensor, eps: float, router: Router) -> Routed:
    tokens, hidden = x.shape
    total = x if delta is None else torch.empty_like(x)
    routed = Routed(total, torch.empty_like(x), *_new_choices(x, router))
    block = triton.next_power_of_2(hidden)
    _route[(tokens,)](
        x,
        *delta_arguments(delta),
        norm_weight,
        router.weight,
        router.bias,
        routed.x,
        routed.normed,
        routed.weights,
        routed.ids,
        eps,
        router.scale,
        HIDDEN=hidden,
        BLOCK=block,
        num_warps=min(max(block // 256, 1), 16),
        **_choice(router),
    )
    return routed


def _gate_logits(normed: Tensor, gate: Tensor) -> Tensor:
    """Maps normed [T, H], gate [E, H] to parts [SPLITS, T, E] float32, whose sum is the logits."""
    (tokens, hidden), experts = normed.shape, gate.shape[0]
    parts = normed.new_empty(SPLITS, tokens, experts, dtype=torch.float32)
    _logits[(triton.cdiv(tokens, ROWS), triton.cdiv(experts, EXPERTS), SPLITS)](
        normed, gate, parts, tokens, HIDDEN=hidden, COUNT=experts, ROWS=ROWS, EXPERTS=EXPERTS, INPUTS=INPUTS
    )
    return parts


def _pick_experts(parts: Tensor, router: Router) -> tuple[Tensor, Tensor]:
    """Returns weights and ids [T, k] for parts [S, T, E]."""
    splits, tokens, _ = parts.shape
    weights, ids = _new_choices(parts[0], router)
    _pick[(triton.cdiv(tokens, ROWS_TO_PICK),)](
        parts, router.bias, weights, ids, tokens, router.scale, SPLITS=splits, ROWS=ROWS_TO_PICK, **_choice(router)
    )
    return weights, ids


def _new_choices(x: Tensor, router: Router) -> tuple[Tensor, Tensor]:
    """Returns room for the weights and the ids of x [T, any]."""
    shape = x.shape[0], router.top_k
    return x.new_empty(shape, dtype=torch.float32), x.new_empty(shape, dtype=torch.int32)


def _choice(router: Router) -> dict[str, int | bool]:
    """Returns the compile-time arguments of _choose and _store_choices."""
    experts = router.weight.shape[0]
    return {
        "COUNT": experts,
        "PADDED": triton.next_power_of_2(experts),
        "TOP_K": router.top_k,
        "CHOICES": triton.next_power_of_2(router.top_k),
        "NORMALISE": router.normalise,
    }


@triton.jit
def _route(
    x_ptr,
    delta_ptr,
    delta_bias_ptr,
    factor,
    norm_ptr,
    gate_ptr,
    bias_ptr,
    total_ptr,
    normed_ptr,
    weights_ptr,
    ids_ptr,
    eps,
    scale,
    HIDDEN: tl.constexpr,
    BLOCK: tl.constexpr,
    COUNT: tl.constexpr,
    PADDED: tl.constexpr,
    TOP_K: tl.constexpr,
    CHOICES: tl.constexpr,
    NORMALISE: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    columns, experts = tl.arange(0, BLOCK), tl.arange(0, PADDED)
    inside = columns < HIDDEN
    at = token * HIDDEN + columns
    norm_weight = tl.load(norm_ptr + columns, mask=inside, other=0).to(tl.float32)
    there = (experts < COUNT)[:, None] & inside[None, :]
    gate = tl.load(gate_ptr + experts[:, None] * HIDDEN + columns[None, :], mask=there, other=0)  # [PADDED, BLOCK]
    row = load_sum(x_ptr, delta_ptr, delta_bias_ptr, factor, token, columns, HIDDEN)
    if delta_ptr is not None:
        tl.store(total_ptr + at, row.to(total_ptr.dtype.element_ty), mask=inside)
    normed = normalise(row, norm_weight, eps, HIDDEN, normed_ptr.dtype.element_ty)
    tl.store(normed_ptr + at, normed.to(normed_ptr.dtype.element_ty), mask=inside)

    logits = tl.sum(gate.to(tl.float32) * normed[None, :], 1)[None, :]  # [1, PADDED]
    weights, ids = _choose(logits, bias_ptr, scale, COUNT, TOP_K, CHOICES, NORMALISE)
    _store_choices(weights_ptr, ids_ptr, weights, ids, token, token + 1, TOP_K)


@triton.jit(do_not_specialize=["tokens"])
def _logits(
    normed_ptr,
    gate_ptr,
    parts_ptr,
    tokens,
    HIDDEN: tl.constexpr,
    COUNT: tl.constexpr,
    ROWS: tl.constexpr,
    EXPERTS: tl.constexpr,
    INPUTS: tl.constexpr,
):
    """Multiplies, as program (i, j, s), tile i of the rows and tile j of the experts over part s of the inputs."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    expert = tl.program_id(1) * EXPERTS + tl.arange(0, EXPERTS)
    share = tl.cdiv(tl.cdiv(HIDDEN, INPUTS), tl.num_programs(2))
    low = tl.program_id(2) * share
    logits = tl.zeros((ROWS, EXPERTS), tl.float32)
    for tile in range(low, tl.minimum(low + share, tl.cdiv(HIDDEN, INPUTS))):
        column = (tile * INPUTS + tl.arange(0, INPUTS))[None, :]
        inside = column < HIDDEN
        there = (row < tokens)[:, None] & inside
        normed = tl.load(normed_ptr + row[:, None] * HIDDEN + column, mask=there, other=0)
        there = (expert < COUNT)[:, None] & inside
        gate = tl.load(gate_ptr + expert[:, None] * HIDDEN + column, mask=there, other=0)
        logits = tl.dot(normed, gate.T, logits, input_precision="ieee")
    at = (tl.program_id(2) * tokens + row)[:, None] * COUNT + expert[None, :]
    tl.store(parts_ptr + at, logits, mask=(row < tokens)[:, None] & (expert < COUNT)[None, :])


@triton.jit(do_not_specialize=["tokens"])
def _pick(
    parts_ptr,
    bias_ptr,
    weights_ptr,
    ids_ptr,
    tokens,
    scale,
    SPLITS: tl.constexpr,
    ROWS: tl.constexpr,
    COUNT: tl.constexpr,
    PADDED: tl.constexpr,
    TOP_K: tl.constexpr,
    CHOICES: tl.constexpr,
    NORMALISE: tl.constexpr,
):
    """Adds up the parts of some rows' logits, in their order, and chooses."""
    first = tl.program_id(0).to(tl.int64) * ROWS
    row, experts = first + tl.arange(0, ROWS), tl.arange(0, PADDED)
    there = (row < tokens)[:, None] & (experts < COUNT)[None, :]
    logits = tl.zeros((ROWS, PADDED), tl.float32)
    for split in tl.static_range(SPLITS):
        at = (split * tokens + row)[:, None] * COUNT + experts[None, :]
        logits += tl.load(parts_ptr + at, mask=there, other=0)
    weights, ids = _choose(logits, bias_ptr, scale, COUNT, TOP_K, CHOICES, NORMALISE)
    _store_choices(weights_ptr, ids_ptr, weights, ids, first, tokens, TOP_K)


@triton.jit
def _choose(
    logits, bias_ptr, scale, COUNT: tl.constexpr, TOP_K: tl.constexpr, CHOICES: tl.constexpr, NORMALISE: tl.constexpr
):
    """Picks the largest of each row of logits [R, PADDED], one by one; returns weights and ids [R, CHOICES].

    The softmax over all experts, divided by the sum over the chosen ones, is the softmax over the chosen ones alone.
    """
    ROWS: tl.constexpr = logits.shape[0]
    experts, choices = tl.arange(0, logits.shape[1])[None, :], tl.arange(0, CHOICES)[None, :]
    if bias_ptr is not None:
        logits += tl.load(bias_ptr + experts, mask=experts < COUNT, other=0)
    # A NaN counts as -inf. If all logits are NaN, every choice is the lowest expert, and the weights are NaN.
    logits = tl.where((experts < COUNT) & (logits == logits), logits, float("-inf"))
    highest = tl.max(logits, 1)[:, None]
    everything = tl.sum(tl.exp(logits - highest), 1)[:, None]
    chosen = tl.full((ROWS, CHOICES), float("-inf"), tl.float32)
    ids = tl.zeros((ROWS, CHOICES), tl.int32)
    for choice in tl.static_range(TOP_K):
        best, expert = tl.max(logits, 1, return_indices=True, return_indices_tie_break_left=True)
        chosen = tl.where(choices == choice, best[:, None], chosen)
        ids = tl.where(choices == choice, expert[:, None], ids)
        logits = tl.where(experts == expert[:, None], float("-inf"), logits)
    shares = tl.exp(chosen - highest)
    return shares / (tl.sum(shares, 1)[:, None] if NORMALISE else everything) * scale, ids


@triton.jit
def _store_choices(weights_ptr, ids_ptr, weights, ids, first, tokens, TOP_K: tl.constexpr):
    """Stores the weights and ids [R, CHOICES] of the rows from `first` on."""
    row, choices = first + tl.arange(0, ids.shape[0])[:, None], tl.arange(0, ids.shape[1])[None, :]
    there = (row < tokens) & (choices < TOP_K)
    tl.store(weights_ptr + row * TOP_K + choices, weights, mask=there)
    tl.store(ids_ptr + row * TOP_K + choices, ids, mask=there)


def route_reference(
    x: Tensor, delta: Delta | None, norm_weight: Tensor, eps: float, router: Router, addend: Tensor | None = None
) -> Routed:
    """Does what route does, in float64 from the normed rows on, with the softmax over all experts."""
    total, normed = add_norm_reference(x, delta, norm_weight, eps)
    logits = normed.double() @ router.weight.double().T  # [T, E]
    logits = logits if router.bias is None else logits + router.bias.double()
    shares = (logits if addend is None else logits + addend.double()).softmax(-1)
    ids = shares.sort(dim=-1, descending=True, stable=True).indices[:, : router.top_k]
    weights = shares.gather(1, ids)
    if router.normalise:
        weights = weights / weights.sum(-1, keepdim=True)
    return Routed(total, normed, (weights * router.scale).float(), ids.int())
