"""Draws a token for each row: top-k, top-p, min-p and the draw itself, without a sort and without the host.

A row is one program that passes over its logits a few times. A filter keeps a prefix of the most likely tokens, so
bisection finds where the prefix ends. These words are used:

    key      the bits of (largest logit - logit), which have the order of the distances; 0 is the most likely token
    amount   what one token counts: 1 for top-k, its weight for top-p
    cut      the smallest key at which the amounts of all keys up to it reach k, or p of the mass
    last     the highest id that belongs to the prefix among the tokens whose key is the cut

A weight is a whole number of 2**-44 of the most likely token's weight, so sums are exact in any order. A row's token
therefore depends neither on its neighbours nor on the block or the device's scheduling, and the last of the running
sums is the total. Compared with the reference, which uses float64, a weight is off by what exp2 and its argument lose
in float32, some 1e-6 of it. So the tokens are the same unless the noise or top_p lies as close to a border.

The floor follows from one multiprocessor reading a row from L2 at some 64 bytes a cycle: at 1.75 GHz a pass takes 1.2
us for 32,000 logits and 5.4 us for 152,000. Rows run beside each other as long as there are multiprocessors. A greedy
row takes one pass and little more than that (9 instructions a logit, of 128 a cycle: 1.3 us). Without filters a second
pass computes weights (27 instructions, 4 us). A filter bisects 31 bits, two bits a pass, and closes in on the keys that
occur: where logits are normally distributed, top-k takes 6 to 10 passes (22 instructions, 3 us each) and top-p 2 to 14
(30 instructions, 4 us each); both take 16 at most. So arithmetic bounds the filters: some 30 and 50 us for 32,000
logits, and five times that for 152,000.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.model.config import ModelError
from octavo.model.ops import sampling

BLOCK = 4096  # logits that are read at once
LARGEST_VOCAB = 2**19 - 1  # The sum of so many weights of the largest size stays below 2**63.
CONTROLS = tl.constexpr(5)
NOISE, TEMPERATURE = tl.constexpr(sampling.NOISE), tl.constexpr(sampling.TEMPERATURE)
TOP_K, TOP_P, MIN_P = tl.constexpr(sampling.TOP_K), tl.constexpr(sampling.TOP_P), tl.constexpr(sampling.MIN_P)
GREEDY = tl.constexpr(sampling.GREEDY)
FARTHEST = tl.constexpr(0x7F800000)  # the key of an infinite distance: forbidden tokens, and ids beyond the vocabulary
UNIT = tl.constexpr(2.0**44)  # the largest weight
LOG2_E = tl.constexpr(1.4426950408889634)

draw_reference = sampling.draw_reference


def draw(logits: Tensor, controls: Tensor, block: int = BLOCK) -> Tensor:
    """Does what model.ops.sampling.draw does: logits [R, V] of any float dtype, controls [R, 5] float64 -> [R] int64.

    Raises ModelError for a vocabulary whose weights might overflow their sum.
    """
    rows, vocab = logits.shape
    if vocab > LARGEST_VOCAB:
        raise ModelError(
            f"A vocabulary of {vocab} tokens is larger than the {LARGEST_VOCAB} that the GPU's kernel draws from: "
            "serve with --device cpu."
        )
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    tokens = torch.empty(rows, dtype=torch.int64, device=logits.device)
    if rows:
        _draw[(rows,)](
            logits,
            controls.contiguous(),
            tokens,
            logits.stride(0),
            vocab,
            BLOCK=block,
            CHUNKS=max(triton.next_power_of_2(triton.cdiv(vocab, block)), 2),
            num_warps=min(max(block // 256, 1), 16),
        )
    return tokens


@triton.jit
def _draw(logits_ptr, controls_ptr, tokens_ptr, stride, vocab, BLOCK: tl.constexpr, CHUNKS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * stride
    controls_ptr += row * CONTROLS
    top, token = _first_maximum(logits_ptr, vocab, BLOCK)
    is_number = tl.abs(top) < float("inf")
    temperature = tl.load(controls_ptr + TEMPERATURE)
    if is_number & (temperature >= GREEDY):
        # Above 1e30 / log2(e) all weights are equal anyway, and the scale stays a normal number.
        scale = tl.maximum(1.0 / temperature * LOG2_E, 1e-30).to(tl.float32)
        cut, quota = _filter(logits_ptr, controls_ptr, vocab, top, scale, BLOCK)
        last = _last_of_equals(logits_ptr, vocab, top, cut, quota, BLOCK)
        noise = tl.load(controls_ptr + NOISE)
        token = _invert(logits_ptr, vocab, top, scale, cut, last, noise, BLOCK, CHUNKS)
    tl.store(tokens_ptr + row, tl.where(is_number, token, -1).to(tl.int64))


@triton.jit
def _first_maximum(logits_ptr, vocab, BLOCK: tl.constexpr):
    """Returns the largest logit, or NaN if a logit is NaN, and the lowest id that has it."""
    best = tl.full((BLOCK,), float("-inf"), tl.float32)
    place = tl.zeros((BLOCK,), tl.int32)
    odd = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, vocab, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        logits = tl.load(logits_ptr + ids, mask=ids < vocab, other=float("-inf")).to(tl.float32)
        place = tl.where(logits > best, ids, place)
        best = tl.where(logits > best, logits, best)
        odd |= (logits != logits).to(tl.int32)
    top = tl.max(best, 0)
    token = tl.min(tl.where(best == top, place, vocab), 0)
    return tl.where(tl.max(odd, 0) > 0, float("nan"), top + 0.0), token  # -0 becomes 0


@triton.jit
def _below(logits_ptr, start, vocab, top, BLOCK: tl.constexpr):
    """Returns the distances of the logits from `start` on to the largest one, [BLOCK] float32, and their keys."""
    ids = start + tl.arange(0, BLOCK)
    logits = tl.load(logits_ptr + ids, mask=ids < vocab, other=float("-inf")).to(tl.float32)
    below = top - logits
    return below, below.to(tl.int32, bitcast=True)


@triton.jit
def _weigh(below, scale):
    """Returns exp(-below / temperature) in whole units."""
    return (tl.exp2(-below * scale) * UNIT).to(tl.int64)


@triton.jit
def _filter(logits_ptr, controls_ptr, vocab, top, scale, BLOCK: tl.constexpr):
    """Applies top-k, then top-p to what it leaves, then min-p; returns the cut, and how many tokens at the cut stay."""
    top_k, top_p = tl.load(controls_ptr + TOP_K), tl.load(controls_ptr + TOP_P)
    cut, quota = tl.cast(FARTHEST, tl.int32), tl.cast(vocab, tl.int64)
    if (top_k > 0) & (top_k < vocab):
        target = top_k.to(tl.int64)
        cut, before = _cut(logits_ptr, vocab, top, scale, cut, target, False, BLOCK)
        quota = target - before
    if top_p < 1:
        weight = _weigh(cut.to(tl.float32, bitcast=True), scale)
        mass = _mass(logits_ptr, vocab, top, scale, cut, BLOCK) + quota * weight
        target = tl.ceil(top_p * mass.to(tl.float64)).to(tl.int64)
        target = tl.minimum(tl.maximum(target, 1), mass)  # The most likely token stays.
        cut, before = _cut(logits_ptr, vocab, top, scale, cut, target, True, BLOCK)
        weight = _weigh(cut.to(tl.float32, bitcast=True), scale)
        quota = (target - before + weight - 1) // weight  # Tokens at the cut are kept until the sum reaches the target.
    min_p = tl.load(controls_ptr + MIN_P)
    if min_p > 0:
        farthest = _key_within(0.0 - tl.load(controls_ptr + TEMPERATURE) * tl.log(min_p))
        if farthest < cut:
            cut, quota = farthest, tl.cast(vocab, tl.int64)
    return cut, quota


@triton.jit
def _key_within(distance):
    """Returns the largest key whose float32 is at most `distance`, a float64 that is not negative."""
    rounded = distance.to(tl.float32)
    return rounded.to(tl.int32, bitcast=True) - (rounded.to(tl.float64) > distance).to(tl.int32)


@triton.jit
def _mass(logits_ptr, vocab, top, scale, cut, BLOCK: tl.constexpr):
    """Returns the sum of the weights of all keys before the cut."""
    sums = tl.zeros((BLOCK,), tl.int64)
    for start in range(0, vocab, BLOCK):
        below, key = _below(logits_ptr, start, vocab, top, BLOCK)
        sums += tl.where(key < cut, _weigh(below, scale), 0)
    return tl.sum(sums, 0)


@triton.jit
def _cut(logits_ptr, vocab, top, scale, high, target, WEIGHTED: tl.constexpr, BLOCK: tl.constexpr):
    """Returns the cut, the smallest key up to which the amount of all keys reaches `target`, and the amount before it.

    The loop keeps amount(low) < target <= amount(high), which holds at the beginning. The cut is a key that occurs.
    """
    low, before = tl.cast(-1, tl.int32), tl.cast(0, tl.int64)
    while high - low > 1:
        quarter = tl.maximum((high - low) >> 2, 1)
        a = low + quarter
        b, c = tl.minimum(a + quarter, high - 1), tl.minimum(a + 2 * quarter, high - 1)
        to_a, to_b, to_c, nearest, farthest = _amounts(
            logits_ptr, vocab, top, scale, a, b, c, low, high, WEIGHTED, BLOCK
        )
        high = tl.where(to_a >= target, a, tl.where(to_b >= target, b, tl.where(to_c >= target, c, high)))
        before = tl.where(to_c < target, to_c, tl.where(to_b < target, to_b, tl.where(to_a < target, to_a, before)))
        low = tl.where(to_c < target, c, tl.where(to_b < target, b, tl.where(to_a < target, a, low)))
        low, high = tl.maximum(low, nearest - 1), tl.minimum(high, farthest)
    return high, before


@triton.jit
def _amounts(logits_ptr, vocab, top, scale, a, b, c, low, high, WEIGHTED: tl.constexpr, BLOCK: tl.constexpr):
    """Returns the amounts up to the keys a, b and c, and the nearest and the farthest key that occur in (low, high]."""
    dtype: tl.constexpr = tl.int64 if WEIGHTED else tl.int32
    to_a, to_b, to_c = tl.zeros((BLOCK,), dtype), tl.zeros((BLOCK,), dtype), tl.zeros((BLOCK,), dtype)
    nearest, farthest = tl.full((BLOCK,), FARTHEST, tl.int32), tl.full((BLOCK,), -1, tl.int32)
    for start in range(0, vocab, BLOCK):
        below, key = _below(logits_ptr, start, vocab, top, BLOCK)
        amount = _weigh(below, scale) if WEIGHTED else tl.full((BLOCK,), 1, tl.int32)
        to_a += tl.where(key <= a, amount, 0)
        to_b += tl.where(key <= b, amount, 0)
        to_c += tl.where(key <= c, amount, 0)
        nearest = tl.minimum(nearest, tl.where(key > low, key, FARTHEST))
        farthest = tl.maximum(farthest, tl.where(key <= high, key, -1))
    sums = tl.sum(to_a, 0).to(tl.int64), tl.sum(to_b, 0).to(tl.int64), tl.sum(to_c, 0).to(tl.int64)
    return sums[0], sums[1], sums[2], tl.min(nearest, 0), tl.max(farthest, 0)


@triton.jit
def _last_of_equals(logits_ptr, vocab, top, cut, quota, BLOCK: tl.constexpr):
    """Returns the id of the `quota`-th token whose key is `cut`; if there are fewer, an id beyond the vocabulary."""
    last, seen, start = tl.cast(vocab, tl.int32), tl.cast(0, tl.int64), tl.cast(0, tl.int32)
    if quota < vocab:
        while (start < vocab) & (last == vocab):
            _, key = _below(logits_ptr, start, vocab, top, BLOCK)
            equal = (key == cut).to(tl.int32)
            count = tl.sum(equal, 0)
            if seen + count >= quota:
                is_last = (equal > 0) & (seen + tl.cumsum(equal, 0) == quota)
                last = start + tl.min(tl.where(is_last, tl.arange(0, BLOCK), BLOCK), 0)
            seen += count
            start += BLOCK
    return last


@triton.jit
def _invert(logits_ptr, vocab, top, scale, cut, last, noise, BLOCK: tl.constexpr, CHUNKS: tl.constexpr):
    """Inverts the CDF of the kept tokens, in the order of the vocabulary; it finds first the block, then the token."""
    chunks = tl.arange(0, CHUNKS)
    sums = tl.zeros((CHUNKS,), tl.int64)
    for chunk in range(0, tl.cdiv(vocab, BLOCK)):
        weights = _kept(logits_ptr, chunk * BLOCK, vocab, top, scale, cut, last, BLOCK)
        sums = tl.where(chunks == chunk, tl.sum(weights, 0), sums)
    total = tl.sum(sums, 0)
    share = tl.minimum((noise * total.to(tl.float64)).to(tl.int64), total - 1)
    chunk = tl.sum((tl.cumsum(sums, 0) <= share).to(tl.int32), 0)
    share -= tl.sum(tl.where(chunks < chunk, sums, 0), 0)
    weights = _kept(logits_ptr, chunk * BLOCK, vocab, top, scale, cut, last, BLOCK)
    return chunk * BLOCK + tl.sum((tl.cumsum(weights, 0) <= share).to(tl.int32), 0)


@triton.jit
def _kept(logits_ptr, start, vocab, top, scale, cut, last, BLOCK: tl.constexpr):
    """Returns the weights from `start` on, [BLOCK] int64, with 0 for tokens that are not in the prefix."""
    below, key = _below(logits_ptr, start, vocab, top, BLOCK)
    ids = start + tl.arange(0, BLOCK)
    return tl.where((key < cut) | ((key == cut) & (ids <= last)), _weigh(below, scale), 0)
