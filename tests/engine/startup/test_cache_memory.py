"""The KV cache and its routes lie in a reserve of their size, all of it zeros, whether a start brings one or not."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from octavo.engine.compute.routes import RouteStore
from octavo.engine.startup.cache_memory import cache_zeros, observer
from octavo.engine.startup.probe import allocate
from octavo.engine.startup.sizing import CacheSize
from octavo.model.config import ModelError
from octavo.model.kv_cache import KVCache
from octavo.model.weights.reserve import PAGE, Reserve
from tests.model.checkpoints import load

SIZE = CacheSize(num_blocks=70, block_size=16, bytes_per_token=256)


@pytest.mark.parametrize("spare", [None, -1, 0, 1, 50 * PAGE])
def test_a_cache_lies_in_a_reserve_of_its_size(checkpoint: Path, spare: int | None) -> None:
    model = load(checkpoint)
    needed = KVCache.bytes_taken(model.config, SIZE.num_blocks, SIZE.block_size, torch.float32)
    needed += RouteStore.bytes_taken(model.config, SIZE.num_blocks, SIZE.block_size)
    reserve = None if spare is None else Reserve(needed + spare)
    zeros = cache_zeros(model, SIZE, reserve)
    cache = allocate(model, SIZE.num_blocks, SIZE.block_size, zeros)
    watching = observer(model, SIZE, zeros)
    assert watching is not None
    slots = [each for layer in cache.layers for each in (layer.key_slots, layer.value_slots)]
    slots += [torch.from_numpy(each) for each in (watching.store.ids, watching.store.weights)]
    assert not any(each.any() for each in slots)
    ends = [each.data_ptr() + each.nbytes for each in slots]
    assert ends[-1] - slots[0].data_ptr() <= needed  # They lie one behind the other.
    if reserve is not None and spare not in (0, 1):
        assert len(reserve.hand_over()) == needed + spare  # It was left alone.


def test_the_routes_of_another_device_take_the_hosts_memory(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, free = replace(load(checkpoint), device=torch.device("meta")), 2**20
    monkeypatch.setattr("octavo.engine.startup.machine.available_memory", lambda: free)

    def elsewhere(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        raise AssertionError("the cache's memory is not for routes")

    watching = observer(model, SIZE, elsewhere)
    assert watching is not None and len(watching.store.ids) == SIZE.tokens
    free = 1000
    with pytest.raises(ModelError, match="of the host's memory"):
        observer(model, SIZE, elsewhere)
