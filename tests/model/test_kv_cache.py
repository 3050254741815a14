"""Tests where a slot of the cache lies, what slot -1 does, and how large a position is."""

from dataclasses import replace

import torch

from octavo.model.kv_cache import KVCache
from tests.tiny import TINY_CONFIG

CONFIG = replace(TINY_CONFIG, num_hidden_layers=3)


def test_shapes_and_size() -> None:
    cache = KVCache.allocate(CONFIG, num_blocks=5, block_size=4, dtype=torch.float32, device="cpu")
    assert len(cache.layers) == 3
    assert {layer.keys.shape for layer in cache.layers} == {(5, 4, 2, 4)}
    assert {layer.values.shape for layer in cache.layers} == {(5, 4, 2, 4)}
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert held == 5 * 4 * KVCache.bytes_per_token(CONFIG, torch.float32)
    assert KVCache.bytes_per_token(CONFIG, torch.bfloat16) * 2 == KVCache.bytes_per_token(CONFIG, torch.float32)


def test_a_slot_is_a_place_in_a_block_and_minus_one_writes_nothing() -> None:
    cache = KVCache.allocate(CONFIG, num_blocks=3, block_size=4, dtype=torch.float32, device="cpu")
    layer = cache.layers[1]
    keys = torch.arange(1.0, 4.0)[:, None, None].expand(3, 2, 4)
    layer.write(keys, -keys, cache.targets(torch.tensor([11, -1, 4])))
    expected = torch.zeros(3, 4)
    expected[2, 3], expected[1, 0] = 1, 3
    assert torch.equal(layer.keys[:, :, 0, 0], expected)
    assert torch.equal(layer.values[:, :, 1, 3], -expected)
    assert not cache.layers[0].keys.any()
