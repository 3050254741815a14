"""From the flags to an engine: find out what the machine has, load the model, size the cache, measure a step."""
