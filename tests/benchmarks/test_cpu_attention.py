"""What is timed is attention as a step does it; and what it is divided by is counted right."""

import pytest
import torch

from benchmarks import cpu_attention
from benchmarks.cpu_attention import BLOCK, DIM, HEADS, KV_HEADS, Pool
from octavo.model.kernels.cpu.library import library
from octavo.model.ops.attention import attention_reference
from tests.model.pages import flat_batch

PAGE = 2 * BLOCK * KV_HEADS * DIM * 4  # bytes of a block's keys and values


def test_a_batch_is_the_one_that_a_step_would_make() -> None:
    table = torch.randperm(6).view(2, 3).int()
    ours = cpu_attention.batch_of([(20, 3), (40, 1)], table)
    theirs = flat_batch([(0, 20, [0] * 3), (1, 40, [0])], table, BLOCK)
    for name in ("positions", "slots", "q_starts", "kv_lens", "block_table"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name


def test_bytes_and_operations_are_those_of_the_keys_that_are_seen() -> None:
    assert cpu_attention.bytes_read([(BLOCK - 1, 1)] * 3) == 3 * PAGE
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
    pool, rows = Pool.random(kernels, 13 * PAGE), [(BLOCK, 2), (BLOCK - 1, 1)]
    calls = pool.calls(rows)
    assert len(calls) == 3  # of 13 pages, two for each of two sequences
    heads, batches = calls[0].args[0], [call.args[1] for call in calls]
    assert len(torch.cat([batch.block_table for batch in batches]).unique()) == 12
    split = heads.split((HEADS, KV_HEADS, KV_HEADS), dim=1)
    expected = attention_reference(*split, pool.pages, batches[0], None)
    torch.testing.assert_close(calls[0](), expected, rtol=1e-4, atol=1e-5)
    assert cpu_attention.seconds(calls) > 0


def test_a_table_has_medians_and_ranges() -> None:
    lines = cpu_attention.table(("row", "GB/s", "share"), {"1 x 512": [(1e9, 0.5), (3e9, 0.25), (2e9, 0.75)]})
    assert lines.splitlines()[-1] == "| 1 x 512 | 2.0 (1.0 to 3.0) | 0.50 (0.25 to 0.75) |"
