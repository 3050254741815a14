"""Batches of given lengths are as model/batch.py says, and the keys that attention sees are counted."""

import torch

from benchmarks.common.batches import BLOCK, batch_of, keys_seen, random_table
from tests.model.pages import flat_batch

LENGTHS = [(3, 20), (1, 33), (5, 5)]


def test_a_batch_is_as_its_class_says() -> None:
    table = random_table(LENGTHS)
    batch = batch_of(LENGTHS, table, 100, torch.device("cpu"))
    assert batch.positions.tolist() == [17, 18, 19, 32, 0, 1, 2, 3, 4]
    assert batch.q_starts.tolist() == [0, 3, 4, 9] and batch.logit_rows.tolist() == [2, 3, 8]
    assert batch.kv_lens.tolist() == list(batch.kv_lens_host) == [20, 33, 5]
    assert sorted(batch.block_table.flatten().tolist()) == list(range(3 * 3))
    for row, (position, slot) in enumerate(zip(batch.positions.tolist(), batch.slots.tolist(), strict=True)):
        owner = int((batch.q_starts <= row).sum()) - 1
        assert slot == int(batch.block_table[owner, position // BLOCK]) * BLOCK + position % BLOCK


def test_pairs_of_tokens_and_keys_are_counted() -> None:
    assert keys_seen(LENGTHS) == sum(end - back for new, end in LENGTHS for back in range(new))


def test_a_batch_is_the_one_that_a_step_would_make() -> None:
    table = torch.randperm(6).view(2, 3).int()
    ours = batch_of([(3, 23), (1, 41)], table, 100, torch.device("cpu"))
    theirs = flat_batch([(0, 20, [0] * 3), (1, 40, [0])], table, BLOCK)
    for name in ("positions", "slots", "q_starts", "kv_lens", "block_table"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
