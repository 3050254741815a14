"""Holds the Triton kernels: each operation has a file, with its reference in it. A CPU needs nothing of this."""
