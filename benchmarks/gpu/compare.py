"""How far a kernel's result is from float64, with memory that would show what it did not write."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def poisoned() -> Iterator[None]:
    """What is allocated here holds NaN, or the largest whole number, until it is written."""
    # torch does so for those who want the same result every time. Its warnings are about operations of its own.
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def difference(actual: Tensor, expected: Tensor) -> float:
    """The root of the mean squared difference, as a share of that of the expected values."""
    wide = expected.double()
    return ((actual.double() - wide).square().mean() / wide.square().mean()).sqrt().item()
