"""Takes memory for the KV cache of a CPU, while torch is imported and, if need be, while the engine serves already."""

from octavo.engine.startup.sizing import CacheSize
from octavo.model.decoder import Decoder
from octavo.model.kv_cache import KVCache
from octavo.model.weights.memory import Zeros, commit, zeros_on
from octavo.model.weights.reserve import Reserve

SPARE = 1.05  # A reserve that is larger by more than this would waste memory.


def cache_zeros(model: Decoder, size: CacheSize, reserve: Reserve | None) -> Zeros:
    """Returns what allocates a cache of that size: on a CPU from the reserve if that fits, or else from a new one.

    The system works on each page that it gives, for seconds a GiB on some virtual machines. A thread lets it do so, and
    nobody waits: sizing has seen that there is enough.
    """
    if model.device.type != "cpu":
        plain = zeros_on(model.device)
        return lambda shape, dtype: commit(plain(shape, dtype))
    needed = KVCache.bytes_taken(model.config, size.num_blocks, size.block_size, model.activation_dtype)
    if reserve is None or not needed <= reserve.size <= SPARE * needed:
        reserve = Reserve(needed)
    return zeros_on(model.device, reserve.hand_over(at_once=True))
