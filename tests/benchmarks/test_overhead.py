"""A step's time is divided between its layers and the rest."""

import pytest

from benchmarks.overhead import decode_seconds, split


def test_two_depths_tell_layers_from_the_rest() -> None:
    assert split((5.0, 13.0), (8, 40)) == pytest.approx((0.25, 3.0))


def test_steps_with_prompts_are_left_out() -> None:
    ends = [10.0, 20.0, *(20.0 + n for n in range(1, 7))]  # two long steps, then six of a second
    assert decode_seconds([(end, 1) for end in ends]) == 1.0
