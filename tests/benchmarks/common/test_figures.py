"""The figures of a table follow from the times of requests, and its cells show them."""

import numpy as np
import pytest

from benchmarks.common.figures import (
    LoadSummary,
    Round,
    Sample,
    Spread,
    milliseconds,
    percentile,
    table_head,
    table_line,
)


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
    summary = LoadSummary.over(2, rounds)
    assert summary.tokens_per_second == Spread(median=8.0, low=5.0, high=15.0)
    assert (summary.requests, summary.failed) == (6, 1)
    assert summary.first_token_p50 == 1.0
    assert summary.inter_token_p50 == 0.5


def test_everything_failed() -> None:
    summary = LoadSummary.over(1, [Round((Sample(error="broken"),), seconds=1.0)])
    assert summary.tokens_per_second.median == 0
    assert summary.first_token_p95 is None
    assert summary.failed == 1


def test_a_table() -> None:
    cells = ("Octavo", Spread.over([2.0, 1.0, 4.0]).cell(1), milliseconds(0.0123), milliseconds(None))
    assert [*table_head("", "rate", "first", "last"), table_line(*cells)] == [
        "|  | rate | first | last |",
        "| --- | ---: | ---: | ---: |",
        "| Octavo | 2.0 (1.0 to 4.0) | 12 ms | - |",
    ]
