"""schedule/ decides which tokens run in the next step, over which blocks of the cache. It is pure Python."""
