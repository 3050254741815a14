"""Cells and lines, as a page shows them."""

from benchmarks.common.figures import Spread
from benchmarks.common.markdown import head, line, milliseconds, spread


def test_a_table() -> None:
    cells = ("Octavo", spread(Spread.over([2.0, 1.0, 4.0]), 1), milliseconds(0.0123), milliseconds(None))
    assert [*head("", "rate", "first", "last"), line(*cells)] == [
        "|  | rate | first | last |",
        "| --- | ---: | ---: | ---: |",
        "| Octavo | 2.0 (1.0 to 4.0) | 12 ms | - |",
    ]
