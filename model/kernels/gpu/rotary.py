"""Makes queries, keys and values of qkv, which is read once: bias, clip, norm, rotary positions, and the cache write.

The floor is 24 KB a token for Mixtral 8x7B in 16 bits, half read and half written. This takes 0.5 us for 64 tokens at
3 TB/s, less than a launch, and 67 us for 8192. A program takes some heads of one token, of whatever kind they are, and
stores each where it is read next:

    qkv of a token    q0 .. q31 | k0 .. k7 | v0 .. v7       programs of 16 heads: three a token
                      normed      normed                    with q_norm and k_norm only
                      rotated     rotated    unchanged
                      q           keys       values         keys and values go to the token's slot of the pages

A norm over a whole projection needs all heads of a token. Each program sums up the squares of all of them, in the same
order as the others, since a token's 4 KB come from the L2 cache sooner than a launch before this one would end.
"""

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from octavo.model.kv_cache import LayerCache
from octavo.model.layers import Rotation

ELEMENTS_PER_THREAD = 8  # in each half of a head; a load of 16 bytes


@dataclass(frozen=True, slots=True)
class Heads:
    """Heads say what a token's qkv is made of, and what happens to it before it is rotated."""

    q: int  # Hq
    kv: int  # Hkv
    bias: Tensor | None = None  # [(Hq + 2 Hkv) * D], is added first
    clip: float | None = None  # then no value is further from 0
    # Weights of an RMSNorm: [D] norms each head by itself, [Hq * D] and [Hkv * D] norm all queries, and all keys.
    q_norm: Tensor | None = None
    k_norm: Tensor | None = None
    eps: float = 0.0

    def kind_of_norm(self, dim: int) -> str:
        """Returns "none", "head" or "projection" for heads of so many elements."""
        if self.q_norm is None:
            return "none"
        return "projection" if self.q_norm.numel() == self.q * dim and self.q > 1 else "head"


def rotate_and_store(qkv: Tensor, rotation: Rotation, slots: Tensor, pages: LayerCache, heads: Heads) -> Tensor:
    """Returns q [T, Hq, D], rotated, from qkv [T, (Hq + 2 Hkv) * D]; writes rotated keys and the values to the pages.

    slots are [T] int64, and -1 writes nothing. All tensors are contiguous. The pages, bias and norms have qkv's dtype.
    """
    tokens, dim = qkv.shape[0], pages.keys.shape[-1]
    q = qkv.new_empty(tokens, heads.q, dim)
    all_heads, block = heads.q + 2 * heads.kv, triton.next_power_of_2(dim // 2)
    together = min(16, triton.next_power_of_2(all_heads))
    _rotate_and_store[(tokens, triton.cdiv(all_heads, together))](
        qkv,
        rotation.cos,
        rotation.sin,
        slots,
        heads.bias,
        heads.clip,
        heads.q_norm,
        heads.k_norm,
        heads.eps,
        q,
        pages.keys,
        pages.values,
        Q_HEADS=heads.q,
        KV_HEADS=heads.kv,
        DIM=dim,
        NORM=heads.kind_of_norm(dim),
        HEADS=together,
        BLOCK=block,
        num_warps=max(together * block // (32 * ELEMENTS_PER_THREAD), 1),
    )
    return q


@triton.jit
def _rotate_and_store(
    qkv_ptr,
    cos_ptr,
    sin_ptr,
    slots_ptr,
    bias_ptr,
    clip,
    q_norm_ptr,
    k_norm_ptr,
    eps,
    q_ptr,
    keys_ptr,
    values_ptr,
    Q_HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    NORM: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    HALF: tl.constexpr = DIM // 2
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]  # [HEADS, 1]
    element = tl.arange(0, BLOCK)[None, :]  # [1, BLOCK]; element i is rotated with element i + D/2
    inside = (head < Q_HEADS + 2 * KV_HEADS) & (element < HALF)
    slot = tl.load(slots_ptr + token).to(tl.int64)
    row = qkv_ptr + token * ((Q_HEADS + 2 * KV_HEADS) * DIM)
    rotated = head < Q_HEADS + KV_HEADS
    first, second = _load_heads(row, bias_ptr, clip, head, element, inside, DIM)
    if NORM != "none":
        if NORM == "head":
            squares = tl.sum(first * first + second * second, 1)[:, None] / DIM  # [HEADS, 1]
        else:
            of_q = _squares(row, bias_ptr, clip, 0, Q_HEADS, DIM, HEADS, BLOCK) / (Q_HEADS * DIM)
            of_k = _squares(row, bias_ptr, clip, Q_HEADS, Q_HEADS + KV_HEADS, DIM, HEADS, BLOCK) / (KV_HEADS * DIM)
            squares = tl.where(head < Q_HEADS, of_q, of_k)
        inverse = tl.rsqrt(squares + eps)
        q_part, k_part = inside & (head < Q_HEADS), inside & rotated & (head >= Q_HEADS)
        q_at, k_at = element, element
        if NORM == "projection":
            q_at, k_at = head * DIM + element, (head - Q_HEADS) * DIM + element
        weight = _norm_weights(q_norm_ptr + q_at, q_part, k_norm_ptr + k_at, k_part)
        first = tl.where(rotated, _normed(first, inverse, weight, q_ptr.dtype.element_ty), first)
        weight = _norm_weights(q_norm_ptr + q_at + HALF, q_part, k_norm_ptr + k_at + HALF, k_part)
        second = tl.where(rotated, _normed(second, inverse, weight, q_ptr.dtype.element_ty), second)

    # These are the second halves of the tables: both halves of the cosines are equal, and these sines are not negated.
    angle = token * DIM + HALF + element
    cos = tl.load(cos_ptr + angle, mask=element < HALF, other=0)
    sin = tl.load(sin_ptr + angle, mask=element < HALF, other=0)
    left = tl.where(rotated, first * cos - second * sin, first)
    right = tl.where(rotated, second * cos + first * sin, second)

    written = inside & (slot >= 0)
    page = slot * (KV_HEADS * DIM) + element
    _store(q_ptr + (token * Q_HEADS + head) * DIM + element, left, right, inside & (head < Q_HEADS), HALF)
    _store(keys_ptr + page + (head - Q_HEADS) * DIM, left, right, written & (head >= Q_HEADS) & rotated, HALF)
    _store(values_ptr + page + (head - Q_HEADS - KV_HEADS) * DIM, left, right, written & (rotated == 0), HALF)


@triton.jit
def _load_heads(row, bias_ptr, clip, head, element, inside, DIM: tl.constexpr):
    """Returns both halves of some heads of a token, with the bias and clipped, as float32; 0 where not inside."""
    HALF: tl.constexpr = DIM // 2
    at = head * DIM + element
    first = tl.load(row + at, mask=inside, other=0).to(tl.float32)
    second = tl.load(row + at + HALF, mask=inside, other=0).to(tl.float32)
    if bias_ptr is not None:  # It rounds behind the bias, like the plain path.
        first += tl.load(bias_ptr + at, mask=inside, other=0).to(tl.float32)
        second += tl.load(bias_ptr + at + HALF, mask=inside, other=0).to(tl.float32)
        first = first.to(row.dtype.element_ty).to(tl.float32)
        second = second.to(row.dtype.element_ty).to(tl.float32)
    if clip is not None:
        first, second = _clipped(first, clip), _clipped(second, clip)
    return first, second


@triton.jit
def _clipped(x, clip):
    """Returns x, or the nearer of -clip and clip; a NaN stays NaN, which tl.minimum would not keep."""
    return tl.where(x > clip, clip, tl.where(x < -clip, -clip, x))


@triton.jit
def _squares(
    row,
    bias_ptr,
    clip,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    DIM: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Returns the sum of the squares of a token's heads LOW to before HIGH."""
    element = tl.arange(0, BLOCK)[None, :]
    sums = tl.zeros((HEADS, BLOCK), tl.float32)
    for low in tl.static_range(LOW, HIGH, HEADS):
        head = low + tl.arange(0, HEADS)[:, None]
        first, second = _load_heads(row, bias_ptr, clip, head, element, (head < HIGH) & (element < DIM // 2), DIM)
        sums += first * first + second * second
    return tl.sum(tl.sum(sums, 1), 0)


@triton.jit
def _norm_weights(q_at, q_part, k_at, k_part):
    """Returns each element's weight of its norm, as float32; 0 for values."""
    of_q = tl.load(q_at, mask=q_part, other=0).to(tl.float32)
    return of_q + tl.load(k_at, mask=k_part, other=0).to(tl.float32)


@triton.jit
def _normed(x, inverse, weight, DTYPE: tl.constexpr):
    """Norms like norm.normalise, which rounds before the weight and after it."""
    return ((x * inverse).to(DTYPE).to(tl.float32) * weight).to(DTYPE).to(tl.float32)


@triton.jit
def _store(at, left, right, mask, HALF: tl.constexpr):
    tl.store(at, left.to(at.dtype.element_ty), mask=mask)
    tl.store(at + HALF, right.to(at.dtype.element_ty), mask=mask)


def rotate_and_store_reference(
    qkv: Tensor, rotation: Rotation, slots: Tensor, pages: LayerCache, heads: Heads
) -> Tensor:
    """Does what rotate_and_store does, with the model's own rotation, and slot by slot."""
    whole = qkv if heads.bias is None else qkv + heads.bias
    whole = whole if heads.clip is None else whole.clamp(-heads.clip, heads.clip)
    split = whole.view(qkv.shape[0], -1, pages.keys.shape[-1])  # [T, Hq + 2 Hkv, D]
    q, k, v = split.split((heads.q, heads.kv, heads.kv), dim=1)
    q, k = rotation(_normed_reference(q, heads.q_norm, heads)), rotation(_normed_reference(k, heads.k_norm, heads))
    block_size = pages.keys.shape[1]
    for t, slot in enumerate(slots.tolist()):
        if slot >= 0:
            pages.keys[slot // block_size, slot % block_size] = k[t]
            pages.values[slot // block_size, slot % block_size] = v[t]
    return q


def _normed_reference(x: Tensor, weight: Tensor | None, heads: Heads) -> Tensor:
    """Norms x [T, any, D] in float64, over the last dimension or the last two."""
    if weight is None:
        return x
    together = x.double() if heads.kind_of_norm(x.shape[-1]) == "head" else x.double().flatten(1)[:, None]
    rms = (together.square().mean(-1, keepdim=True) + heads.eps).sqrt()
    return weight.view(-1, x.shape[-1]) * (x.double() / rms).to(x.dtype)
