"""Attention is timed as a step does it, and the bytes and operations that it is divided by are counted right."""

import pytest
import torch

from benchmarks import cpu_attention
from benchmarks.common.batches import BLOCK
from benchmarks.cpu_attention import DIM, HEADS, KV_HEADS, Pool
from octavo.model.kernels.cpu.library import library
from octavo.model.ops.attention import attention_reference

PAGE = 2 * BLOCK * KV_HEADS * DIM * 4  # bytes of a block's keys and values


def test_bytes_and_operations_are_those_of_the_keys_that_are_seen() -> None:
    assert cpu_attention.bytes_read([(1, BLOCK)] * 3) == 3 * PAGE
    seen = sum(7 + n + 1 for n in range(5))
    assert cpu_attention.operations(5, 7) == 4 * HEADS * DIM * seen


@pytest.mark.parametrize("before", [0, 5])
def test_torch_is_told_what_is_seen(before: int) -> None:
    """The first token's result is not touched by values that only later ones see."""
    call = cpu_attention.torch_call(3, before)
    expected = call()
    values = call.args[2]
    values[:, :, before + 1 :] += 1
    actual = call()
    assert torch.equal(actual[:, :, 0], expected[:, :, 0])
    assert not torch.equal(actual[:, :, 1], expected[:, :, 1])


@pytest.mark.skipif(library() is None, reason="the C kernels were not built")
def test_calls_go_through_all_pages_and_no_page_is_in_two() -> None:
    kernels = library()
    assert kernels is not None
    pool, lengths = Pool.random(kernels, 13 * PAGE), [(2, BLOCK + 2), (1, BLOCK)]
    calls = pool.calls(lengths)
    assert len(calls) == 3  # of 13 pages, two for each of two sequences
    heads, batches = calls[0].args[0], [call.args[1] for call in calls]
    assert len(torch.cat([batch.block_table for batch in batches]).unique()) == 12
    split = heads.split((HEADS, KV_HEADS, KV_HEADS), dim=1)
    expected = attention_reference(split, pool.pages, batches[0], None)
    torch.testing.assert_close(calls[0](), expected, rtol=1e-4, atol=1e-5)
    assert cpu_attention.seconds(calls) > 0


def test_a_table_has_medians_and_ranges() -> None:
    lines = cpu_attention.table(("row", "GB/s", "share"), {"1 x 512": [(1e9, 0.5), (3e9, 0.25), (2e9, 0.75)]})
    assert lines.splitlines()[-1] == "| 1 x 512 | 2.0 (1.0 to 3.0) | 0.50 (0.25 to 0.75) |"
