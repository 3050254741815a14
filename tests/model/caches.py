"""Makes caches of one layer that are full of noise, for the tests of attention."""

from dataclasses import replace

import torch

from octavo.model.kv_cache import KVCache, LayerCache
from tests.tiny import TINY_CONFIG

HEAD_DIM = 8
LONGEST = 24  # positions of a sequence


def random_cache(sequences: int, kv_heads: int, block_size: int, dtype: torch.dtype = torch.float32) -> KVCache:
    """Returns a cache of one layer whose blocks, for sequences of up to LONGEST positions, hold noise."""
    config = replace(TINY_CONFIG, num_attention_heads=kv_heads, num_key_value_heads=kv_heads, head_dim=HEAD_DIM)
    cache = KVCache.allocate(config, sequences * -(-LONGEST // block_size), block_size, dtype, "cpu")
    cache.layers[0].keys.normal_()
    cache.layers[0].values.normal_()
    return cache


def copy_of(layer: LayerCache) -> LayerCache:
    """Returns a layer with copies of its keys and values, for a reference to write to."""
    return replace(layer, keys=layer.keys.clone(), values=layer.values.clone())
