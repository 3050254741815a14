"""Measures the GPU path operation by operation, and tunes its kernels."""
