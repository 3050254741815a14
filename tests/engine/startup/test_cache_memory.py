"""The KV cache lies in a reserve that has its size, all of it zeros, whether a start brings one or not."""

from pathlib import Path

import pytest
import torch

from octavo.engine.startup.cache_memory import cache_zeros
from octavo.engine.startup.probe import allocate
from octavo.engine.startup.sizing import CacheSize
from octavo.model.kv_cache import KVCache
from octavo.model.weights.reserve import PAGE, Reserve
from tests.model.checkpoints import load

SIZE = CacheSize(num_blocks=70, block_size=16, bytes_per_token=256)


@pytest.mark.parametrize("spare", [None, -1, 0, 1, 50 * PAGE])
def test_a_cache_lies_in_a_reserve_of_its_size(checkpoint: Path, spare: int | None) -> None:
    model = load(checkpoint)
    needed = KVCache.bytes_taken(model.config, SIZE.num_blocks, SIZE.block_size, torch.float32)
    reserve = None if spare is None else Reserve(needed + spare)
    cache = allocate(model, SIZE.num_blocks, SIZE.block_size, cache_zeros(model, SIZE, reserve))
    slots = [each for layer in cache.layers for each in (layer.key_slots, layer.value_slots)]
    assert not any(each.any() for each in slots)
    ends = [each.data_ptr() + each.nbytes for each in slots]
    assert ends[-1] - slots[0].data_ptr() <= needed  # They lie one behind the other.
    if reserve is not None and spare not in (0, 1):
        assert len(reserve.hand_over()) == needed + spare  # It was left alone.
