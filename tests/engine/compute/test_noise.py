"""Compares Philox with its published vectors and with a plain implementation, and tests the promises of uniforms."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.engine.compute.noise import philox, uniforms

WORD = 0xFFFFFFFF


def plain_philox(counter: list[int], key: list[int]) -> list[int]:
    """Computes the algorithm of the paper, one number at a time."""
    for _ in range(10):
        high0, low0 = divmod(counter[0] * 0xD2511F53, 2**32)
        high1, low1 = divmod(counter[2] * 0xCD9E8D57, 2**32)
        counter = [high1 ^ counter[1] ^ key[0], low1, high0 ^ counter[3] ^ key[1], low0]
        key = [(key[0] + 0x9E3779B9) % 2**32, (key[1] + 0xBB67AE85) % 2**32]
    return counter


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0] * 4, [0] * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([WORD] * 4, [WORD] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ],
)
def test_known_answers(counter, key, expected):
    """The expected words are the test vectors of the authors' library."""
    words = philox(np.array(counter, np.uint64)[:, None], np.array(key, np.uint64)[:, None])
    assert " ".join(f"{word:08x}" for word in words[:, 0]) == expected
    assert plain_philox(counter, key) == words[:, 0].tolist()


@settings(derandomize=True, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 2**64 - 1)] * 3), min_size=1, max_size=8))
def test_uniforms_equal_the_plain_implementation(triples):
    seeds, choices, positions = (list(column) for column in zip(*triples, strict=True))
    for (seed, choice, position), got in zip(triples, uniforms(seeds, choices, positions), strict=True):
        counter = [position & WORD, position >> 32, choice & WORD, choice >> 32]
        first, second, *_ = plain_philox(counter, [seed & WORD, seed >> 32])
        assert got == ((first << 32 | second) >> 11) / 2**53
        assert 0 <= got < 1


def test_each_of_seed_choice_and_position_matters():
    drawn = uniforms([1, 2, 1, 1], [0, 0, 1, 0], [5, 5, 5, 6])
    assert len(set(drawn.tolist())) == 4


def test_a_negative_seed_is_its_two_complement():
    assert uniforms([-1], [0], [0]) == uniforms([2**64 - 1], [0], [0])


def test_uniforms_are_uniform():
    drawn = uniforms([7] * 20_000, [0] * 20_000, list(range(20_000)))
    counts = np.histogram(drawn, bins=20, range=(0, 1))[0]
    assert ((counts - 1000) ** 2 / 1000).sum() < 43.8  # chi-square, 19 degrees of freedom, p = 0.001
