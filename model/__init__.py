"""Takes tensors and returns tensors; it knows nothing of requests, scheduling or HTTP."""
