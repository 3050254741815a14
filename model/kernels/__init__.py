"""Kernels of our own, each behind one of the seams in model/ops, where its reference is."""
