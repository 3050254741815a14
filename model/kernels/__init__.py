"""Holds kernels of our own, in C and Triton, behind the seams of model/ops, and chooses among them."""
