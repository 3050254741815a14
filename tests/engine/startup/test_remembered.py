"""A measured step size is used again where a short step takes as long as before, and else measured again."""

from pathlib import Path

import pytest

from octavo.engine.startup.remembered import Remembered
from octavo.engine.startup.sizing import FEWEST_STEP_TOKENS, measure_step_tokens

FACTS = {"weights": "ab", "threads": 2}


class Clock:
    """Takes so long for each token, and notes what was asked."""

    def __init__(self, each: float) -> None:
        self.each = each
        self.asked: list[int] = []

    def __call__(self, tokens: int) -> float:
        self.asked.append(tokens)
        return self.each * tokens


def test_the_second_start_asks_one_short_step(tmp_path: Path) -> None:
    expected = measure_step_tokens(Clock(0.001))
    assert Remembered.of(tmp_path, FACTS).step_tokens(Clock(0.001)) == expected
    again = Clock(0.0011)
    assert Remembered.of(tmp_path, FACTS).step_tokens(again) == expected
    assert again.asked == [FEWEST_STEP_TOKENS]


@pytest.mark.parametrize("each", [0.0001, 0.01])
def test_another_speed_is_measured_again(tmp_path: Path, each: float) -> None:
    Remembered.of(tmp_path, FACTS).step_tokens(Clock(0.001))
    expected = measure_step_tokens(Clock(each))
    assert Remembered.of(tmp_path, FACTS).step_tokens(Clock(each)) == expected
    later = Clock(each)
    assert Remembered.of(tmp_path, FACTS).step_tokens(later) == expected and len(later.asked) == 1


def test_a_first_step_that_is_long_counts_for_nothing(tmp_path: Path) -> None:
    expected = Remembered.of(tmp_path, FACTS).step_tokens(Clock(0.001))
    times = iter([1.0, 0.016])
    assert Remembered.of(tmp_path, FACTS).step_tokens(lambda tokens: next(times)) == expected


def test_other_facts_are_another_file(tmp_path: Path) -> None:
    Remembered.of(tmp_path, FACTS).step_tokens(Clock(0.001))
    other = Clock(0.001)
    Remembered.of(tmp_path, FACTS | {"threads": 3}).step_tokens(other)
    assert len(other.asked) > 1


@pytest.mark.parametrize("contents", ["", "{}", "[]", '{"step_tokens": "x", "shortest": 1}'])
def test_a_damaged_file_or_none_is_measured(tmp_path: Path, contents: str) -> None:
    known = Remembered.of(tmp_path, FACTS)
    known.path.parent.mkdir()
    known.path.write_text(contents)
    assert known.step_tokens(Clock(0.001)) == measure_step_tokens(Clock(0.001))
    blocked = Remembered(tmp_path / "steps" / known.path.name / "below a file")
    assert blocked.step_tokens(Clock(0.001)) == measure_step_tokens(Clock(0.001))
