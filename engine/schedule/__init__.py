"""Which tokens run in the next step, over which blocks of the cache. Pure Python."""
