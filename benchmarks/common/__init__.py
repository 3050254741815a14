"""Benchmarks share these modules: they make models, start processes, send requests and sum up what was timed."""
