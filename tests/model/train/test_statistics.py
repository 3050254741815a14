"""Intervals cover what they should, say "no difference" where there is none, and chance is told from information."""

import numpy as np
import pytest

from octavo.model.train.statistics import Difference, dead, difference, entropy, information, mutual_information


def test_a_difference_is_the_mean_over_tokens_with_its_interval() -> None:
    counts = np.array([10.0, 30.0, 20.0] * 10)
    second = counts * 3.0
    found = difference(second - 0.5 * counts, second, counts, seed=0)
    assert (found.mean, found.low, found.high) == pytest.approx((-0.5, -0.5, -0.5))
    assert found.documents == 30 and found.verdict == "lower"
    assert difference(second + 1, second, counts, 0).verdict == "higher"


def test_noise_is_no_difference_in_nearly_all_cases() -> None:
    random, counts = np.random.default_rng(0), np.full(30, 100.0)
    verdicts = [
        difference(random.normal(0, 20, 30), random.normal(0, 20, 30), counts, seed).verdict for seed in range(60)
    ]
    assert verdicts.count("no difference") >= 51  # 57 are expected


def test_the_interval_is_as_wide_as_the_documents_differ() -> None:
    random, counts = np.random.default_rng(1), np.full(400, 10.0)
    found = difference(random.normal(3, 20, 400), np.zeros(400), counts, 0)
    assert found.high - found.low == pytest.approx(2 * 1.96 * 20 / 400**0.5 / 10, rel=0.15)


def test_verdicts() -> None:
    assert Difference(0.1, 0.0, 0.2, 5).verdict == "no difference"
    assert Difference(0.1, 0.05, 0.2, 5).verdict == "higher"
    assert Difference(-0.1, -0.2, -0.05, 5).verdict == "lower"


def test_entropy_is_between_one_expert_and_all() -> None:
    shares = np.array([[8.0, 0, 0, 0], [2, 2, 2, 2], [1, 1, 0, 0]])
    assert entropy(shares).tolist() == pytest.approx([0, 1, 0.5])
    assert dead(shares).tolist() == [3, 0, 2]
    assert dead(np.array([[0.09, 1.0, 1.0, 1.91], [0.11, 1.0, 1.0, 1.89]])).tolist() == [1, 0]


def test_information_is_that_of_known_tables() -> None:
    same, apart = [[5.0, 5], [5, 5]], [[10.0, 0], [0, 10]]
    told = mutual_information(np.array([same, apart]).transpose(1, 0, 2))
    assert told.tolist() == pytest.approx([0, 1])


def test_chance_gives_information_too_and_real_information_exceeds_it() -> None:
    random, labels = np.random.default_rng(0), np.repeat([0, 1], 10)
    noise = random.dirichlet([0.3] * 4, 20) * 50
    by_domain = np.eye(4)[labels] * 50 + random.random((20, 4))
    told = information(np.stack([noise, by_domain], axis=1), labels, seed=0)
    assert told.by_layer[0] < told.chance_high[0] and told.chance[0] > 0.02
    assert told.by_layer[1] > 0.8 > told.chance_high[1]
