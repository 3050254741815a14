"""Holds weights as data: their kinds, layouts, precision and memory. The arithmetic is in ops/ and kernels/."""
