"""Computes paged causal attention. One kernel takes prefill and decode rows; several programs share a long context.

The query heads of a KV head are rows of one tile, so a key is read once for all of them (https://arxiv.org/abs/2305.13245):

    row of a tile     0  1  2  3 | 4  5  6  7 | ...         HEADS_PER_KV = Hq / Hkv = 4
    token             t          | t + 1      | ...
    head              0  1  2  3 | 0  1  2  3 | ...         those of one KV head

Keys are read tile by tile through the block table. A running softmax takes them up in float32 and in powers of two
(https://arxiv.org/abs/2205.14135). Where several programs share the keys of a tile of queries, each stores its own
average and the logarithm of its sum; a second kernel folds those in a fixed order
(https://crfm.stanford.edu/2023/10/12/flashdecoding.html).

A sink is a score of each query head that belongs to no key: its exponential joins the sum that shares are divided by
(gpt-oss, https://arxiv.org/abs/2309.17453). It joins once, where the result is whole: at the end of a program whose
keys nobody shares, or in the fold.

These are the floors for Mixtral's layer (Hq 32, Hkv 8, D 128, bfloat16) at the 3.0 TB/s and 800 TFLOP/s of an H100:
    decode   2 * Hkv * D * 2 = 4096 bytes a key:         1.4 us for 1024 keys, 89 us for 64 sequences of 1024
    prefill  4 * Hq * D = 16384 FLOP a query and key:    43 us for 2048 fresh tokens, 1.4 ms for 2048 behind 32768
For one decode row with 32768 keys the floor is 45 us if the whole device reads them, and several times that if one
program per head does.

The reference is model.ops.attention.attention_reference.
"""

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.model.kernels.gpu.attention_plan import MOST_SPLITS, GpuPlan, Launch
from octavo.model.kv_cache import LayerCache

FOLD_WARPS = 4
LOG2_E = math.log2(math.e)  # Exponentials are powers of two.
_LOG2_E = tl.constexpr(LOG2_E)


@dataclass(frozen=True, slots=True)
class Softmax:
    """A Softmax says what else than keys the shares depend on."""

    scale: float  # factor of the scores
    sinks: Tensor | None  # [Hq] float32


def attend(
    q: Tensor, pages: LayerCache, plan: GpuPlan, sinks: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """Computes q [T, Hq, D] -> [T, Hq * D]; the new keys and values are already in the pages.

    q is dense except for the stride of T. Sinks are [Hq] float32; a scale of None is D ** -0.5. Rows of a padding
    sequence (kv_len 0) give zeros. The result is deterministic, since the plan fixes the order of every sum.
    """
    softmax = Softmax(q.shape[2] ** -0.5 if scale is None else scale, sinks)
    out = q.new_empty(q.shape[0], q.shape[1] * q.shape[2])
    for launch in plan.launches:
        rows = launch.slots * launch.tokens * q.shape[1]
        partials = q.new_empty(rows, q.shape[2], dtype=torch.float32)  # [slots * tokens * Hq, D]
        logs = q.new_empty(rows, dtype=torch.float32)  # [slots * tokens * Hq], log2 of each sum of exponentials
        _run(launch, plan, q, pages, softmax, (out, partials, logs))
        if launch.slots:
            _run_fold(launch, plan, q.shape[1], sinks, (out, partials, logs))
    return out


Results = tuple[Tensor, Tensor, Tensor]  # out, partials, logs


def _run(launch: Launch, plan: GpuPlan, q: Tensor, pages: LayerCache, softmax: Softmax, results: Results) -> None:
    _, block_size, kv_heads, head_dim = pages.keys.shape
    config = launch.config
    _attend[(kv_heads, launch.count, launch.splits)](
        *results,
        q,
        pages.keys,
        pages.values,
        plan.table,
        plan.kv_lens,
        launch.items,
        plan.table.stride(0),
        launch.splits,
        q.stride(0),
        softmax.sinks,
        softmax.scale * LOG2_E,
        KV_HEADS=kv_heads,
        HEADS_PER_KV=q.shape[1] // kv_heads,
        HEAD=head_dim,
        BLOCK=block_size,
        WINDOW=plan.window or 0,
        TOKENS=launch.tokens,
        ROWS=config.rows,
        KEYS=config.inputs,
        num_warps=config.warps,
        num_stages=config.stages,
    )


def _run_fold(launch: Launch, plan: GpuPlan, heads: int, sinks: Tensor | None, results: Results) -> None:
    _fold[(launch.tokens * heads, launch.folds)](
        *results,
        plan.kv_lens,
        launch.pieces,
        launch.splits,
        sinks,
        HEADS=heads,
        HEAD=results[1].shape[1],
        WINDOW=plan.window or 0,
        TOKENS=launch.tokens,
        KEYS=launch.config.inputs,
        AT_ONCE=MOST_SPLITS,
        num_warps=FOLD_WARPS,
    )


# Triton must not specialise on what differs from one forward pass to the next, so that serving never waits for a
# compiler.
@triton.jit(do_not_specialize=["table_stride", "splits"], do_not_specialize_on_alignment=["table", "kv_lens", "items"])
def _attend(
    out,  # [T, Hq * D]
    partials,  # [slots, TOKENS, Hq, D] float32
    logs,  # [slots, TOKENS, Hq] float32
    q,  # [T, Hq, D]
    keys,  # [blocks, BLOCK, Hkv, D]
    values,
    table,  # [N, B] int32
    kv_lens,  # [N] int32
    items,  # [count, 7] int32; None: each sequence has one token
    table_stride,
    splits,
    q_stride,
    sinks,  # [Hq] float32; None: no sinks
    scale,  # factor of the scores; log2(e) is in it
    KV_HEADS: tl.constexpr,
    HEADS_PER_KV: tl.constexpr,
    HEAD: tl.constexpr,
    BLOCK: tl.constexpr,
    WINDOW: tl.constexpr,  # 0: none
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
):
    """Computes, as program (h, n, s), KV head h of item n; without items, of sequence n and split s of its keys."""
    kv_head = tl.program_id(0)
    if items is None:
        sequence, row, position, tokens, low, high, slot = _split(kv_lens, splits, WINDOW, KEYS)
    else:
        sequence, row, position, tokens, low, high, slot = _listed(items)
    if (low >= high) & (slot >= 0):
        return  # The fold knows which splits have keys.
    rows, dims = tl.arange(0, ROWS), tl.arange(0, triton.next_power_of_2(HEAD))
    token, head = rows // HEADS_PER_KV, kv_head * HEADS_PER_KV + rows % HEADS_PER_KV  # [ROWS]
    real = token < tokens
    inside = real[:, None] & (dims < HEAD)[None, :]
    queries = tl.load(q + (row + token)[:, None] * q_stride + head[:, None] * HEAD + dims[None, :], inside, 0.0)
    pages = (keys + kv_head * HEAD, values + kv_head * HEAD, table + sequence * table_stride)
    sums, highest, total = _sweep(
        queries, pages, position, token, tokens, low, high, scale, (KV_HEADS * HEAD, HEAD, BLOCK, WINDOW, KEYS)
    )
    average, log = _averages(sums, highest, total, sinks, head, slot)
    if slot < 0:
        at = (row + token).to(tl.int64) * (KV_HEADS * HEADS_PER_KV) + head
        tl.store(out + at[:, None] * HEAD + dims[None, :], average.to(out.dtype.element_ty), inside)
    else:
        at = (slot.to(tl.int64) * TOKENS + token) * (KV_HEADS * HEADS_PER_KV) + head
        tl.store(partials + at[:, None] * HEAD + dims[None, :], average, inside)
        tl.store(logs + at, log, real)


@triton.jit
def _averages(sums, highest, total, sinks, head, slot):
    """Returns the averages [ROWS, HEAD] of values, and the logarithms [ROWS] of the sums that they were divided by.

    The sinks join here if the result is whole, which slot < 0 says; else they join in the fold.
    """
    if sinks is not None:
        sink = tl.load(sinks + head) * _LOG2_E
        total, shrunk = _join(highest, total, tl.where(slot < 0, sink, float("-inf")))
        sums *= shrunk[:, None]
    seen = total > 0  # false for padding, and for a row whose keys are all in other pieces
    total = tl.where(seen, total, 1.0)
    return sums / total[:, None], tl.where(seen, highest + tl.log2(total), float("-inf"))


@triton.jit
def _join(highest, total, sink):
    """Adds sinks to sums of exponentials. Returns the sums, and the factors of what has been summed up before."""
    both = tl.maximum(highest, sink)
    shrunk = tl.exp2(highest - both)
    return total * shrunk + tl.exp2(sink - both), shrunk


@triton.jit
def _listed(items):
    """Returns this program's line of the items."""
    item = items + tl.program_id(1) * 7
    sequence, row, position, tokens = tl.load(item), tl.load(item + 1), tl.load(item + 2), tl.load(item + 3)
    low, high, slot = tl.load(item + 4), tl.load(item + 5), tl.load(item + 6)
    return sequence, row, position, tokens, low, high, slot


@triton.jit
def _split(kv_lens, splits, WINDOW: tl.constexpr, KEYS: tl.constexpr):
    """Returns what _listed returns, for the only token of a sequence and this program's share of its keys."""
    sequence, split = tl.program_id(1), tl.program_id(2)
    kv_len = tl.load(kv_lens + sequence)
    first, tiles, share = _shares(kv_len, splits, WINDOW, KEYS)
    low = first + split * share
    high = tl.minimum(low + share, first + tiles)
    slot = tl.where(splits == 1, -1, sequence * splits + split)
    return sequence, sequence, kv_len - 1, 1, low, high, slot


@triton.jit
def _shares(kv_len, splits, WINDOW: tl.constexpr, KEYS: tl.constexpr):
    """Returns the first key tile that a sequence's last token sees, the number of tiles, and the tiles of a split."""
    first = tl.maximum(kv_len - WINDOW, 0) // KEYS if WINDOW else 0
    tiles = tl.cdiv(kv_len, KEYS) - first
    return first, tiles, tl.cdiv(tiles, splits)


@triton.jit
def _sweep(queries, pages, position, token, tokens, low, high, scale, shape):
    """Goes over the key tiles low to high. Most tiles are seen in full by every row; they need no masks.

    keys      low            full           edge    high
    token 0   . . # # # # # # # # # # # # # # . . . .       sees the keys of (position - WINDOW, position]
    token t   . . . . . . # # # # # # # # # # # # # #
    """
    WINDOW: tl.constexpr = shape[3]
    KEYS: tl.constexpr = shape[4]
    ROWS: tl.constexpr = queries.shape[0]
    sums = tl.zeros(queries.shape, tl.float32)
    # The start is finite, so that -inf - highest is not NaN where a row has seen no key.
    highest = tl.full((ROWS,), -1e30, tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    newest = position + tokens - 1
    seen = (queries, pages, position + token, position - WINDOW, newest, scale)
    full, edge = low, low
    # With few rows memory is the limit: masks cost nothing, and each further loop would begin with an empty pipeline.
    if ROWS >= 64:
        if WINDOW:
            full = tl.minimum(high, tl.maximum(low, tl.cdiv(tl.maximum(newest - WINDOW + 1, 0), KEYS)))
            sums, highest, total = _over(sums, highest, total, low, full, True, shape, *seen)
        edge = tl.maximum(full, tl.minimum(high, (position + 1) // KEYS))
        sums, highest, total = _over(sums, highest, total, full, edge, False, shape, *seen)
    return _over(sums, highest, total, edge, high, True, shape, *seen)


@triton.jit
def _over(
    sums, highest, total, low, high, MASKED: tl.constexpr, shape, queries, pages, positions, older, newest, scale
):
    """Adds one tile of keys after the other: computes scores and their exponentials, and sums the weighted values."""
    keys, values, line = pages
    STRIDE: tl.constexpr = shape[0]
    HEAD: tl.constexpr = shape[1]
    BLOCK: tl.constexpr = shape[2]
    WINDOW: tl.constexpr = shape[3]
    KEYS: tl.constexpr = shape[4]
    dims = tl.arange(0, queries.shape[1])[None, :]
    columns = tl.arange(0, KEYS)
    blocks = _blocks(line, low * KEYS + columns, newest, BLOCK)
    for tile in range(low, high):
        at = tile * KEYS + columns  # positions
        places = (blocks.to(tl.int64) * BLOCK + at % BLOCK)[:, None] * STRIDE + dims
        # The table is read one tile ahead. Otherwise loads of keys would wait for it, and half as many would be under
        # way.
        blocks = _blocks(line, at + KEYS, newest, BLOCK)
        inside = dims < HEAD
        if MASKED:
            # What no row sees is not read: it may belong to another sequence, and it may be NaN.
            present = at <= newest
            if WINDOW:
                present &= at > older
            inside &= present[:, None]
        key = tl.load(keys + places, inside, 0.0)  # [KEYS, HEAD]
        scores = tl.dot(queries, key.T, input_precision="ieee") * scale  # [ROWS, KEYS]
        if MASKED:
            visible = at[None, :] <= positions[:, None]
            if WINDOW:
                visible &= at[None, :] > positions[:, None] - WINDOW
            scores = tl.where(visible, scores, float("-inf"))
        before, highest = highest, tl.maximum(highest, tl.max(scores, 1))
        exponentials = tl.exp2(scores - highest[:, None])
        shrunk = tl.exp2(before - highest)
        total = total * shrunk + tl.sum(exponentials, 1)
        value = tl.load(values + places, inside, 0.0)  # [KEYS, HEAD]
        sums = tl.dot(exponentials.to(value.dtype), value, sums * shrunk[:, None], input_precision="ieee")
    return sums, highest, total


@triton.jit
def _blocks(line, positions, newest, BLOCK: tl.constexpr):
    """Returns the blocks that hold the keys at these positions, 0 beyond the newest key."""
    return tl.load(line + positions // BLOCK, positions <= newest, 0)


@triton.jit(do_not_specialize=["splits"], do_not_specialize_on_alignment=["kv_lens", "pieces"])
def _fold(
    out,
    partials,
    logs,
    kv_lens,
    pieces,  # [folds, 4] int32; None: sequence n has the slots from n * splits on
    splits,
    sinks,  # [Hq] float32
    HEADS: tl.constexpr,
    HEAD: tl.constexpr,
    WINDOW: tl.constexpr,
    TOKENS: tl.constexpr,
    KEYS: tl.constexpr,
    AT_ONCE: tl.constexpr,
):
    """Puts together, as program (r, n), what was computed for token r // Hq and head r % Hq of tile n."""
    index, tile = tl.program_id(0), tl.program_id(1)
    if pieces is None:
        _, tiles, share = _shares(tl.load(kv_lens + tile), splits, WINDOW, KEYS)
        row, slot, count = tile, tile * splits, tl.cdiv(tiles, tl.maximum(share, 1))
    else:
        line = pieces + tile * 4
        row, tokens, slot, count = tl.load(line), tl.load(line + 1), tl.load(line + 2), tl.load(line + 3)
        if index // HEADS >= tokens:
            return
    dims = tl.arange(0, triton.next_power_of_2(HEAD))
    sums = tl.zeros(dims.shape, tl.float32)
    total = 0.0
    highest = -1e30
    for first in range(0, count, AT_ONCE):
        piece = first + tl.arange(0, AT_ONCE)
        at = (slot + piece).to(tl.int64) * (TOKENS * HEADS) + index
        inside = (piece < count)[:, None] & (dims < HEAD)[None, :]
        log = tl.load(logs + at, piece < count, float("-inf"))
        average = tl.load(partials + at[:, None] * HEAD + dims[None, :], inside, 0.0)
        before, highest = highest, tl.maximum(highest, tl.max(log, 0))
        weights, shrunk = tl.exp2(log - highest), tl.exp2(before - highest)
        total = total * shrunk + tl.sum(weights, 0)
        sums = sums * shrunk + tl.sum(weights[:, None] * average, 0)
    if sinks is not None:
        total, shrunk = _join(highest, total, tl.load(sinks + index % HEADS) * _LOG2_E)
        sums *= shrunk
    average = sums / tl.where(total > 0, total, 1.0)
    tl.store(out + (row * HEADS + index) * HEAD + dims, average.to(out.dtype.element_ty), dims < HEAD)
