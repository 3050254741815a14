"""Batches of given lengths: what model/batch.py says of them, and what attention sees."""

import torch

from benchmarks.common.batches import BLOCK, batch_of, seen

ROWS = [(3, 20), (1, 33), (5, 5)]


def test_a_batch_is_as_its_class_says() -> None:
    batch, blocks = batch_of(ROWS, 100, torch.device("cpu"))
    assert batch.positions.tolist() == [17, 18, 19, 32, 0, 1, 2, 3, 4]
    assert batch.q_starts.tolist() == [0, 3, 4, 9] and batch.logit_rows.tolist() == [2, 3, 8]
    assert batch.kv_lens.tolist() == list(batch.kv_lens_host) == [20, 33, 5]
    assert blocks == 3 * 3 and sorted(batch.block_table.flatten().tolist()) == list(range(blocks))
    for row, (position, slot) in enumerate(zip(batch.positions.tolist(), batch.slots.tolist(), strict=True)):
        owner = int((batch.q_starts <= row).sum()) - 1
        assert slot == int(batch.block_table[owner, position // BLOCK]) * BLOCK + position % BLOCK


def test_pairs_of_tokens_and_keys_are_counted() -> None:
    assert seen(ROWS) == sum(end - back for new, end in ROWS for back in range(new))
