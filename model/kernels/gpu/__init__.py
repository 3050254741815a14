"""The Triton kernels, an operation a file with its reference beside it; nothing that a CPU needs is in here."""
