"""Compares a batch's tensors, with pending tokens and padding, with an obvious construction."""

from dataclasses import fields, replace

import pytest
import torch

from octavo.engine.api import SamplingParams
from octavo.engine.compute.tensors import ALIGNED, BatchSizes, PendingTokens, on_host, to_forward_batch
from octavo.engine.schedule.batch import PENDING, Batch, Row
from tests.model.pages import flat_batch

CPU = torch.device("cpu")


def test_the_batch_is_what_a_plain_loop_makes_of_it():
    table = torch.tensor([[7, 2, 0], [4, 9, 1], [3, 0, 0]], dtype=torch.int32)
    rows = [(0, 3, [11, 12]), (1, 8, [21]), (2, 0, [31, 32, 33])]
    blocks = [(7, 2), (4, 9, 1), (3,)]
    params = SamplingParams(1)
    batch = Batch(
        tuple(Row(str(n), first, tuple(tokens), blocks[n], params, None if n == 0 else 0) for n, first, tokens in rows)
    )
    made, wanted = to_forward_batch(batch, 4, CPU), flat_batch(rows, table, 4, every=False)
    wanted = replace(wanted, logit_rows=wanted.logit_rows[1:])
    for each in fields(made):
        got, plain = getattr(made, each.name), getattr(wanted, each.name)
        if isinstance(plain, torch.Tensor):
            assert (got.dtype, got.tolist()) == (plain.dtype, plain.tolist()), each.name
        else:
            assert got == plain, each.name


def test_a_batch_that_samples_nothing_is_computed():
    batch = Batch((Row("a", 0, (5, 6), (1,), SamplingParams(1), None),))
    assert to_forward_batch(batch, 4, CPU).logit_rows.shape == (0,)


def test_the_targets_of_prompts_come_after_the_rows_that_are_sampled():
    params = SamplingParams(1)
    batch = Batch(
        (
            Row("a", 0, (5, 6, 7), (1,), params, None, targets=(6, 7, 8)),
            Row("b", 3, (9,), (2,), params, 1),
            Row("c", 0, (4, 5), (3,), params, 0, targets=(5,)),
        )
    )
    assert to_forward_batch(batch, 4, CPU).logit_rows.tolist() == [3, 5, 0, 1, 2, 4]


def test_a_pending_token_is_taken_on_the_device_and_one_that_is_no_number_is_some_token():
    params = SamplingParams(5)
    rows = [Row(name, 4, (token,), (0, 1), params, 2) for name, token in (("a", 7), ("b", PENDING), ("c", PENDING))]
    pending = PendingTokens(torch.tensor([41, 42, -1]), {"c": 0, "other": 1, "b": 2})
    assert to_forward_batch(Batch(tuple(rows)), 4, CPU, pending).tokens.tolist() == [7, 0, 41]


def test_a_buffer_larger_than_its_batch_is_padded_with_rows_that_write_and_see_nothing():
    rows = (Row("a", 5, (7,), (3, 2), SamplingParams(5), 2), Row("b", 0, (8,), (1,), SamplingParams(5), 0))
    sizes = BatchSizes(tokens=4, rows=4, logit_rows=4, blocks=3)
    buffer = on_host(Batch(rows), sizes, 4, CPU)
    parts = sizes.split(buffer.view(torch.int64), buffer.view(torch.int32))
    assert [part.tolist() for part in parts] == [
        [7, 8, 0, 0],
        [5, 0, 0, 0],
        [2 * 4 + 1, 4, -1, -1],
        [0, 1, 2, 3],
        [0, 1, 2, 3, 4],
        [6, 1, 0, 0],
        [[3, 2, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0]],
    ]


@pytest.mark.parametrize("numbers", [(1, 1, 1, 1), (5, 3, 3, 7), (9, 2, 1, 4)])
def test_every_tensor_is_aligned_and_none_overlaps_another(numbers):
    sizes = BatchSizes(*numbers)
    buffer = torch.empty(sizes.nbytes, dtype=torch.uint8)
    parts = sizes.split(buffer.view(torch.int64), buffer.view(torch.int32))
    starts = [part.data_ptr() for part in parts]
    assert starts == sorted(starts) and not any(start % ALIGNED for start in starts)
    ends = [part.data_ptr() + part.nbytes for part in parts]
    assert all(end <= start for end, start in zip(ends, starts[1:], strict=False))
    assert ends[-1] <= starts[0] + sizes.nbytes < ends[-1] + ALIGNED
