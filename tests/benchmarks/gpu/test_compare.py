"""The difference from float64, and memory that shows what was not written."""

import math

import pytest
import torch

from benchmarks.gpu.compare import difference, poisoned


def test_a_difference_is_a_share_of_the_values() -> None:
    expected = torch.tensor([3.0, -4.0])
    assert difference(expected, expected) == 0
    assert difference(expected * 1.01, expected) == pytest.approx(0.01, rel=1e-4)
    assert math.isnan(difference(torch.tensor([3.0, math.nan]), expected))


def test_what_is_not_written_is_no_number() -> None:
    with poisoned():
        x = torch.ones(3)
        assert x.new_empty(4, dtype=torch.bfloat16).isnan().all() and torch.empty_like(x).isnan().all()
        assert (x.new_empty(4, dtype=torch.int32) == 2**31 - 1).all()
    assert not torch.are_deterministic_algorithms_enabled()
