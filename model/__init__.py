"""Tensors in, tensors out; it knows nothing of requests, scheduling or HTTP."""
