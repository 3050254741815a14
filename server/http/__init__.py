"""HTTP without any knowledge of models: errors, JSON, streams, keys, limits, probes, metrics, the page."""
