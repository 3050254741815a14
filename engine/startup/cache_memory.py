"""Takes memory for the KV cache of a CPU, while torch is imported and, if need be, while the engine serves already."""

import torch

from octavo.engine.compute.expert_use import Observer
from octavo.engine.compute.routes import RouteStore
from octavo.engine.startup import machine
from octavo.engine.startup.sizing import CacheSize, check_routes
from octavo.model.decoder import Decoder
from octavo.model.kv_cache import KVCache
from octavo.model.weights.memory import Zeros, commit, zeros_on
from octavo.model.weights.reserve import Reserve

SPARE = 1.05  # A reserve that is larger by more than this would waste memory.


def cache_zeros(model: Decoder, size: CacheSize, reserve: Reserve | None) -> Zeros:
    """Returns what allocates a cache of that size, and on a CPU the routes beside it.

    There it comes from the reserve if that fits, or else from a new one.

    The system works on each page that it gives, for seconds a GiB on some virtual machines. A thread lets it do so, and
    nobody waits: sizing has seen that there is enough.
    """
    if model.device.type != "cpu":
        plain = zeros_on(model.device)
        return lambda shape, dtype: commit(plain(shape, dtype))
    needed = KVCache.bytes_taken(model.config, size.num_blocks, size.block_size, model.activation_dtype)
    needed += RouteStore.bytes_taken(model.config, size.num_blocks, size.block_size)
    if reserve is None or not needed <= reserve.size <= SPARE * needed:
        reserve = Reserve(needed)
    return zeros_on(model.device, reserve.hand_over(at_once=True))


def observer(model: Decoder, size: CacheSize, zeros: Zeros) -> Observer | None:
    """Makes room for the routes of all tokens in a cache of that size; returns None for a model without a choice.

    `zeros` allocates the cache. On a GPU, the routes take the host's memory. Raises ModelError if they do not fit.
    """
    if model.device.type != "cpu":
        check_routes(RouteStore.bytes_taken(model.config, size.num_blocks, size.block_size), machine.available_memory())
        plain = zeros_on(torch.device("cpu"))
        store = RouteStore.of(model.config, size.num_blocks, size.block_size, lambda *what: commit(plain(*what)))
    else:
        store = RouteStore.of(model.config, size.num_blocks, size.block_size, zeros)
    return None if store is None else Observer(store, model.config.num_experts)
