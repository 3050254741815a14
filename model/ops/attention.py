"""Computes causal attention of new tokens over their sequences' paged keys and values."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.model.batch import ForwardBatch
from octavo.model.kv_cache import KVCache, LayerCache

QUERY_ROWS = 256  # most queries in a masked call: its mask of [QUERY_ROWS, keys] stays small whatever the context


@dataclass(frozen=True, slots=True)
class Span:
    """A Span is a run of new tokens of a sequence, with the keys that any of them sees."""

    rows: slice  # tokens of the batch
    keys: slice  # positions in the context's blocks
    mask: Tensor | None  # [rows, keys], added to the scores; None: all keys, or causal when there are several rows


@dataclass(frozen=True, slots=True)
class Context:
    """A Context is a sequence: the blocks whose keys its new tokens see, and the spans of these tokens."""

    blocks: Tensor  # [B'] int64
    spans: tuple[Span, ...]


class Plan:
    """A Plan is what an implementation of attention prepares once for all layers of a forward pass.

    Only that implementation looks inside: each has a subclass of its own.
    """

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class AttentionPlan(Plan):
    """An AttentionPlan is the Plan of `attention`."""

    contexts: tuple[Context, ...]
    targets: Tensor  # [T], where the new keys and values go


def plan_attention(
    batch: ForwardBatch, cache: KVCache, window: int | None, query_rows: int = QUERY_ROWS
) -> AttentionPlan:
    """Cuts each sequence's new tokens into spans that need no mask, or a small one."""
    table = batch.block_table.long()
    dtype, size = cache.layers[0].keys.dtype, cache.block_size
    contexts: list[Context] = []
    row = 0
    for n, (count, end) in enumerate(zip(batch.q_lens_host, batch.kv_lens_host, strict=True)):
        begin = end - count
        low = _oldest(begin, window) // size
        spans = []
        for first, last in _pieces(begin, end, window, query_rows) if end else ():
            seen = _oldest(first, window)
            mask = _mask(range(first, last), seen, window, dtype, table.device)
            rows = slice(row + first - begin, row + last - begin)
            spans.append(Span(rows, slice(seen - low * size, last - low * size), mask))
        if spans:  # a sequence without spans is padding, or has nothing to compute
            contexts.append(Context(table[n, low : -(-end // size)], tuple(spans)))
        row += count
    return AttentionPlan(tuple(contexts), cache.targets(batch.slots))


def _oldest(position: int, window: int | None) -> int:
    """Returns the position of the first key that the query at a position sees."""
    return 0 if window is None else max(0, position + 1 - window)


def _pieces(first: int, last: int, window: int | None, longest: int) -> list[tuple[int, int]]:
    """Cuts positions first to last (exclusive) into short ranges, or leaves them whole as a plain causal triangle."""
    if first == 0 and longest > 1 and (window is None or last <= window):
        return [(first, last)]
    return [(start, min(start + longest, last)) for start in range(first, last, longest)]


def _mask(rows: range, seen: int, window: int | None, dtype: torch.dtype, device: torch.device) -> Tensor | None:
    """Returns 0 where a query sees a key, else -inf; a position sees the keys of (position - window, position]."""
    triangle = seen == rows.start == 0 and (window is None or rows.stop <= window)
    if triangle or len(rows) == 1:
        return None
    queries = torch.arange(rows.start, rows.stop, device=device)[:, None]
    keys = torch.arange(seen, rows.stop, device=device)
    visible = keys <= queries
    if window is not None:
        visible &= keys > queries - window
    return torch.zeros(visible.shape, dtype=dtype, device=device).masked_fill_(~visible, float("-inf"))


def attention(
    q: Tensor, k: Tensor, v: Tensor, cache_layer: LayerCache, plan: Plan, sinks: Tensor | None = None
) -> Tensor:
    """Maps q [T, Hq, D], k and v [T, Hkv, D] to [T, Hq * D]; then the cache holds the new keys and values.

    Sinks [Hq] float32 are logits beside those of the keys: they take a share of the attention and add nothing.
    """
    assert isinstance(plan, AttentionPlan)
    cache_layer.write(k, v, plan.targets)
    out = torch.zeros_like(q, memory_format=torch.contiguous_format)  # rows without a span are padding
    for context in plan.contexts:
        keys, values = _gather(cache_layer.keys, context), _gather(cache_layer.values, context)
        for span in context.spans:
            seen = keys[:, :, span.keys], values[:, :, span.keys]
            if sinks is None:
                out[span.rows] = _attend(q[span.rows], *seen, span.mask)
            else:
                out[span.rows] = _attend_with_sinks(q[span.rows], *seen, span.mask, sinks)
    return out.flatten(1)


def _gather(pages: Tensor, context: Context) -> Tensor:
    """Returns all of the context's keys (or values) in the order of their positions, [1, Hkv, keys, D]."""
    # index_select, not pages[blocks]: the latter copies several times slower on a CPU.
    return pages.index_select(0, context.blocks).flatten(0, 1).transpose(0, 1)[None]


def _attend(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """Maps q [rows, Hq, D], keys and values [1, Hkv, keys, D] to [rows, Hq, D]."""
    if q.shape[0] == 1:
        # The query heads of a group are the rows of one product: their keys are read once.
        grouped = q.view(1, keys.shape[1], -1, q.shape[-1])  # [1, Hkv, Hq / Hkv, D]
        return F.scaled_dot_product_attention(grouped, keys, values).view(q.shape)
    heads = q.transpose(0, 1)[None]  # [1, Hq, rows, D]
    out = F.scaled_dot_product_attention(heads, keys, values, attn_mask=mask, is_causal=mask is None, enable_gqa=True)
    return out[0].transpose(0, 1)


def _attend_with_sinks(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, sinks: Tensor) -> Tensor:
    """Does what _attend does, a few rows at a time, because torch's attention knows no sinks."""
    out = torch.empty_like(q)
    first_seen = keys.shape[2] - q.shape[0]  # by the first row, without a mask
    grouped = q.unflatten(1, (keys.shape[1], -1))  # [rows, Hkv, Hq / Hkv, D]
    logits = sinks.view(1, keys.shape[1], -1, 1)  # [1, Hkv, Hq / Hkv, 1]
    for start in range(0, q.shape[0], QUERY_ROWS):
        part = grouped[start : start + QUERY_ROWS]
        scores = torch.einsum("rhgd,hkd->rhgk", part, keys[0]).float() * q.shape[-1] ** -0.5
        if mask is not None:
            scores = scores + mask[start : start + QUERY_ROWS, None, None]
        elif q.shape[0] > 1:
            newest = torch.arange(len(part), device=q.device) + start + first_seen  # [rows]
            hidden = torch.arange(keys.shape[2], device=q.device) > newest[:, None]
            scores = scores.masked_fill(hidden[:, None, None], float("-inf"))
        shares = torch.cat((scores, logits.expand(len(part), -1, -1, -1)), dim=-1).softmax(-1)[..., :-1]
        attended = torch.einsum("rhgk,hkd->rhgd", shares.to(q.dtype), values[0])
        out[start : start + QUERY_ROWS] = attended.flatten(1, 2)
    return out


def attention_reference(
    heads: tuple[Tensor, Tensor, Tensor],
    cache_layer: LayerCache,
    batch: ForwardBatch,
    window: int | None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Takes one token and one head at a time and looks keys up one by one, in float64. Padding rows give zeros.

    heads are q [T, Hq, D], k and v [T, Hkv, D].
    """
    q, k, v = heads
    block_size = cache_layer.keys.shape[1]
    for t, slot in enumerate(batch.slots.tolist()):
        if slot >= 0:
            cache_layer.keys[slot // block_size, slot % block_size] = k[t]
            cache_layer.values[slot // block_size, slot % block_size] = v[t]
    out = torch.zeros_like(q)
    group = q.shape[1] // k.shape[1]
    starts = batch.q_starts.tolist()
    for n, kv_len in enumerate(batch.kv_lens.tolist()):
        for t in range(starts[n], starts[n + 1]) if kv_len else ():
            position = int(batch.positions[t])
            seen = range(0 if window is None else max(0, position - window + 1), position + 1)
            where = [(int(batch.block_table[n, p // block_size]), p % block_size) for p in seen]
            for head in range(q.shape[1]):
                keys = torch.stack([cache_layer.keys[b, o, head // group] for b, o in where]).double()
                values = torch.stack([cache_layer.values[b, o, head // group] for b, o in where]).double()
                scores = keys @ q[t, head].double() / q.shape[-1] ** 0.5
                if sinks is not None:
                    scores = torch.cat((scores, sinks[head, None].double()))
                out[t, head] = (scores.softmax(0)[: len(keys)] @ values).to(q.dtype)
    return out.flatten(1)
