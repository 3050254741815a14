"""The loads are as large as a server takes, and the tables say what was seen."""

import json

import pytest

from benchmarks.bystander import summary
from benchmarks.common.api_process import Usage
from benchmarks.common.flood import Tide, table
from benchmarks.common.hostile import LOADS, Answer, Load
from benchmarks.common.witness import Seen

MOST = 8 * 1024 * 1024  # bytes that a body may have


@pytest.mark.parametrize("load", LOADS, ids=lambda load: load.name)
def test_each_body_is_json_of_nearly_eight_megabytes(load: Load) -> None:
    body = load.body()
    assert 0.8 * MOST < len(body) <= MOST
    assert json.loads(body)


def test_a_line_tells_what_was_seen() -> None:
    usage = Usage(before=100_000_000, peak=300_000_000, after=120_000_000, cpu=0.04)
    seen = Seen(gap=0.2, health=0.05, failures=["health"])
    line = summary(LOADS[0], seen, usage, [Answer("400", 1.5), Answer("left", 1.0)], 0.03)
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[1:8] == ["200 ms", "50 ms", "100 MB", "300 MB", "120 MB", "40 ms", "30 ms"]
    assert cells[8] == "1 x 400, 1 x left in 1500 ms; failures: health"


def test_the_flood_is_compared() -> None:
    answers = [Answer("429", 0.01), Answer("429", 0.02), Answer("429", 0.03), Answer("400", 9.0)]
    lines = table([Tide(40.0), Tide(38.0, answers)])
    assert lines[-1].endswith("| 38.0 | 20 ms | 1 x 400, 3 x 429 |")
