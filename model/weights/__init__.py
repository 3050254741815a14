"""Weights as they are held: kinds, their layouts, the memory they lie in. Data; the arithmetic is elsewhere."""
