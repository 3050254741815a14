"""Makes queries, keys and values of qkv, which is read once: bias, norm, clip, rotary positions, and the cache write.

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
    # Weights of an RMSNorm: [D] norms each head by itself, [Hq * D] and [Hkv * D] norm all queries, and all keys.
    q_norm: Tensor | None = None
    k_norm: Tensor | None = None
    eps: float = 0.0  # the norms'
    clip: float | None = None  # Behind the norms, this is the largest magnitude of queries, keys and values.

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
        heads.q_norm,
        heads.k_norm,
        heads.eps,
        heads.clip,
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
    q_norm_ptr,
    k_norm_ptr,
    eps,
    clip,
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
    first, second = _load_heads(row, bias_ptr, head, element, inside, DIM)
    if NORM != "none":
        if NORM == "head":
            squares = tl.sum(first * first + second * second, 1)[:, None] / DIM  # [HEADS, 1]
        else:
            of_q = _squares(row, bias_ptr, 0, Q_HEADS, DIM, HEADS, BLOCK)
            squares = tl.where(head < Q_HEADS, of_q, _squares(row, bias_ptr, Q_HEADS, KV_HEADS, DIM, HEADS, BLOCK))
        scaled = inside & rotated, tl.rsqrt(squares + eps)
        weights = _norm_pointers(q_norm_ptr, k_norm_ptr, head, Q_HEADS, DIM, NORM) + element
        first, second = _normed(first, weights, *scaled), _normed(second, weights + HALF, *scaled)
    if clip is not None:
        first, second = _clipped(first, clip), _clipped(second, clip)

    cos, sin = _load_angles(cos_ptr, sin_ptr, token, element, DIM)
    left = tl.where(rotated, first * cos - second * sin, first)
    right = tl.where(rotated, second * cos + first * sin, second)

    written = inside & (slot >= 0)
    page = slot * (KV_HEADS * DIM) + element
    _store(q_ptr + (token * Q_HEADS + head) * DIM + element, left, right, inside & (head < Q_HEADS), HALF)
    _store(keys_ptr + page + (head - Q_HEADS) * DIM, left, right, written & (head >= Q_HEADS) & rotated, HALF)
    _store(values_ptr + page + (head - Q_HEADS - KV_HEADS) * DIM, left, right, written & (rotated == 0), HALF)


@triton.jit
def _load_heads(row, bias_ptr, head, element, inside, DIM: tl.constexpr):
    """Returns both halves of some heads of a token, with the bias, as float32; 0 where not inside."""
    HALF: tl.constexpr = DIM // 2
    at = head * DIM + element
    first = tl.load(row + at, mask=inside, other=0).to(tl.float32)
    second = tl.load(row + at + HALF, mask=inside, other=0).to(tl.float32)
    if bias_ptr is not None:  # It rounds behind the bias, like the plain path.
        first += tl.load(bias_ptr + at, mask=inside, other=0).to(tl.float32)
        second += tl.load(bias_ptr + at + HALF, mask=inside, other=0).to(tl.float32)
        first = first.to(row.dtype.element_ty).to(tl.float32)
        second = second.to(row.dtype.element_ty).to(tl.float32)
    return first, second


@triton.jit
def _load_angles(cos_ptr, sin_ptr, token, element, DIM: tl.constexpr):
    """Returns a token's cosines and sines, [1, BLOCK].

    They are in the second halves of the tables: both halves of the cosines are equal, and these sines are not negated.
    """
    at = token * DIM + DIM // 2 + element
    there = element < DIM // 2
    return tl.load(cos_ptr + at, mask=there, other=0), tl.load(sin_ptr + at, mask=there, other=0)


@triton.jit
def _clipped(x, clip):
    """Returns x, or the nearer of -clip and clip; a NaN stays NaN, which tl.minimum would not keep."""
    return tl.where(x > clip, clip, tl.where(x < -clip, -clip, x))


@triton.jit
def _squares(
    row, bias_ptr, LOW: tl.constexpr, COUNT: tl.constexpr, DIM: tl.constexpr, HEADS: tl.constexpr, BLOCK: tl.constexpr
):
    """Returns the mean square of a token's heads from LOW on, COUNT of them."""
    element = tl.arange(0, BLOCK)[None, :]
    sums = tl.zeros((HEADS, BLOCK), tl.float32)
    for low in tl.static_range(LOW, LOW + COUNT, HEADS):
        head = low + tl.arange(0, HEADS)[:, None]
        inside = (head < LOW + COUNT) & (element < DIM // 2)
        first, second = _load_heads(row, bias_ptr, head, element, inside, DIM)
        sums += first * first + second * second
    return tl.sum(tl.sum(sums, 1), 0) / (COUNT * DIM)


@triton.jit
def _norm_pointers(q_norm_ptr, k_norm_ptr, head, Q_HEADS: tl.constexpr, DIM: tl.constexpr, NORM: tl.constexpr):
    """Returns where the weights of each head's norm begin, [HEADS, 1]; values have none, and get those of no key."""
    if NORM == "head":
        return tl.where(head < Q_HEADS, q_norm_ptr, k_norm_ptr)
    return tl.where(head < Q_HEADS, q_norm_ptr + head * DIM, k_norm_ptr + (head - Q_HEADS) * DIM)


@triton.jit
def _normed(x, weights, there, inverse):
    """Norms like norm.normalise, which rounds before the weight and after it; where nothing is there, x stays."""
    DTYPE: tl.constexpr = weights.dtype.element_ty
    weight = tl.load(weights, mask=there, other=0).to(tl.float32)
    return tl.where(there, ((x * inverse).to(DTYPE).to(tl.float32) * weight).to(DTYPE).to(tl.float32), x)


@triton.jit
def _store(at, left, right, mask, HALF: tl.constexpr):
    tl.store(at, left.to(at.dtype.element_ty), mask=mask)
    tl.store(at + HALF, right.to(at.dtype.element_ty), mask=mask)


def rotate_and_store_reference(
    qkv: Tensor, rotation: Rotation, slots: Tensor, pages: LayerCache, heads: Heads
) -> Tensor:
    """Does what rotate_and_store does, with the model's own rotation, and slot by slot."""
    whole = qkv if heads.bias is None else qkv + heads.bias
    split = whole.view(qkv.shape[0], -1, pages.keys.shape[-1])  # [T, Hq + 2 Hkv, D]
    q, k, v = split.split((heads.q, heads.kv, heads.kv), dim=1)
    q, k = _normed_reference(q, heads.q_norm, heads), _normed_reference(k, heads.k_norm, heads)
    if heads.clip is not None:
        q, k, v = (each.clamp(-heads.clip, heads.clip) for each in (q, k, v))
    q, k = rotation(q), rotation(k)
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
