"""Compares attention with its reference: ragged batches over scattered pages, windows, chunks, padding rows."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.model.batch import ForwardBatch
from octavo.model.kv_cache import KVCache
from octavo.model.ops.attention import AttentionPlan, attention, attention_reference, plan_attention
from tests.model.caches import HEAD_DIM, LONGEST, copy_of, random_cache
from tests.model.pages import flat_batch


def compare(
    cache: KVCache,
    batch: ForwardBatch,
    groups: int,
    window: int | None = None,
    tolerance: float = 1e-5,
    plan: AttentionPlan | None = None,
) -> None:
    layer = cache.layers[0]
    kv_heads, dtype = layer.keys.shape[2], layer.keys.dtype
    count = batch.tokens.shape[0]
    q = torch.randn(count, kv_heads * groups, HEAD_DIM).to(dtype)
    k, v = torch.randn(2, count, kv_heads, HEAD_DIM).to(dtype)
    untouched = copy_of(layer)
    expected = attention_reference((q, k, v), untouched, batch, window)
    actual = attention(q, k, v, layer, plan or plan_attention(batch, cache, window))
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)
    assert torch.equal(layer.keys, untouched.keys)
    assert torch.equal(layer.values, untouched.values)


@settings(derandomize=True, max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(0, LONGEST - 1), st.integers(1, LONGEST)), min_size=1, max_size=4),
    block_size=st.sampled_from([1, 4, 5]),
    heads=st.sampled_from([(1, 1), (2, 1), (2, 3), (1, 4)]),
    window=st.sampled_from([None, 1, 3, 8, 100]),
    query_rows=st.sampled_from([2, 5, 256]),
)
def test_any_ragged_batch(
    lengths: list[tuple[int, int]], block_size: int, heads: tuple[int, int], window: int | None, query_rows: int
) -> None:
    torch.manual_seed(len(lengths))
    cache = random_cache(len(lengths), heads[0], block_size)
    table = torch.randperm(cache.num_blocks).view(len(lengths), -1).int()
    rows = [(n, before, [0] * min(new, LONGEST - before)) for n, (before, new) in enumerate(lengths)]
    batch = flat_batch(rows, table, block_size)
    compare(cache, batch, heads[1], window, plan=plan_attention(batch, cache, window, query_rows))


@pytest.mark.parametrize("before", [0, 3, 4, 7, 8])
@pytest.mark.parametrize("new", [1, 4, 5])
def test_block_boundaries(before: int, new: int) -> None:
    torch.manual_seed(0)
    cache = random_cache(1, 2, 4)
    table = torch.randperm(cache.num_blocks)[None].int()
    compare(cache, flat_batch([(0, before, [0] * new)], table, 4), 2)


def test_bfloat16() -> None:
    torch.manual_seed(0)
    cache = random_cache(2, 2, 4, torch.bfloat16)
    table = torch.randperm(cache.num_blocks).view(2, -1).int()
    compare(cache, flat_batch([(0, 5, [0] * 9), (1, 11, [0])], table, 4), 2, window=6, tolerance=3e-2)


def test_padding_rows_give_zeros_and_write_nothing() -> None:
    torch.manual_seed(0)
    cache = random_cache(2, 2, 4)
    table = torch.randperm(cache.num_blocks).view(2, -1).int()
    real = flat_batch([(0, 6, [0]), (1, 0, [0])], table, 4)
    padded = replace(real, slots=torch.tensor([int(real.slots[0]), -1]), kv_lens_host=(7, 0))
    padded = replace(padded, kv_lens=torch.tensor(padded.kv_lens_host, dtype=torch.int32))
    compare(cache, padded, 2)


def test_unseen_slots_do_not_matter() -> None:
    """A NaN in the pages of other sequences, or at later positions, changes nothing."""
    torch.manual_seed(0)
    cache = random_cache(2, 1, 4)
    table = torch.randperm(cache.num_blocks).view(2, -1).int()
    batch = flat_batch([(0, 9, [0])], table, 4)
    q, k, v = torch.randn(1, 2, HEAD_DIM), *torch.randn(2, 1, 1, HEAD_DIM)
    before = attention(q, k, v, cache.layers[0], plan_attention(batch, cache, None))
    for pages in (cache.layers[0].keys, cache.layers[0].values):
        pages[table[1].long()] = float("nan")
        pages[table[0, 2:].long(), 2:] = float("nan")
    assert torch.equal(attention(q, k, v, cache.layers[0], plan_attention(batch, cache, None)), before)
