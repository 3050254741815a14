"""The figures of a table, from times that are known."""

import numpy as np
import pytest

from benchmarks.common.figures import Round, Row, Sample, Spread, percentile


@pytest.mark.parametrize("percent", [0, 50, 90, 95, 100])
@pytest.mark.parametrize("count", [1, 2, 7, 20])
def test_percentile_is_numpys(percent: float, count: int) -> None:
    values = np.random.default_rng(count).random(count)
    assert percentile(values.tolist(), percent) == pytest.approx(np.percentile(values, percent))


def test_percentile_of_nothing() -> None:
    assert percentile([], 50) is None


def test_sample() -> None:
    sample = Sample(tokens=4, arrivals=(0.5, 0.75, 1.5))
    assert sample.first == 0.5
    assert sample.gaps == (0.25, 0.75)


def test_failed_requests_count_as_failed_and_for_nothing_else() -> None:
    rounds = [
        Round((Sample(10, (1.0, 1.5)), Sample(error="broken")), seconds=2.0),
        Round((Sample(10, (3.0, 4.5)), Sample(20, (2.0,))), seconds=2.0),
        Round((Sample(8, (1.0, 1.5)), Sample(8, (1.0, 1.5))), seconds=2.0),
    ]
    row = Row.over(2, rounds)
    assert row.tokens_per_second == Spread(median=8.0, low=5.0, high=15.0)
    assert (row.requests, row.failed) == (6, 1)
    assert row.first_token_p50 == 1.0
    assert row.inter_token_p50 == 0.5


def test_everything_failed() -> None:
    row = Row.over(1, [Round((Sample(error="broken"),), seconds=1.0)])
    assert row.tokens_per_second.median == 0
    assert row.first_token_p95 is None
    assert row.failed == 1
