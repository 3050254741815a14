"""A measured step size is used again where a short step takes as long as before, and else measured again."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from octavo.engine.startup.remembered import Remembered
from octavo.engine.startup.sizing import sure_step_tokens

FACTS = {"weights": "ab", "threads": 2}


@dataclass
class Machine:
    """Takes so many seconds for the shortest step, the first ones apart, and should have so many tokens in a step."""

    seconds: float
    tokens: int
    first: list[float] = field(default_factory=list)
    short_steps: int = 0
    measurements: int = 0

    def shortest(self) -> float:
        self.short_steps += 1
        return self.first.pop() if self.first else self.seconds

    def measured(self) -> int:
        self.measurements += 1
        return self.tokens

    def start(self, known: Remembered, surely: Callable[[float], int] = lambda seconds: 0) -> int:
        return known.step_tokens(self.shortest, self.measured, surely)


def test_the_second_start_asks_one_short_step(tmp_path: Path) -> None:
    assert Machine(0.01, 400).start(Remembered.of(tmp_path, FACTS)) == 400
    again = Machine(0.011, 7)
    assert again.start(Remembered.of(tmp_path, FACTS)) == 400
    assert (again.short_steps, again.measurements) == (1, 0)


@pytest.mark.parametrize("seconds", [0.001, 0.1])
def test_another_speed_is_measured_again(tmp_path: Path, seconds: float) -> None:
    Machine(0.01, 400).start(Remembered.of(tmp_path, FACTS))
    assert Machine(seconds, 7).start(Remembered.of(tmp_path, FACTS)) == 7
    assert Machine(seconds, 8).start(Remembered.of(tmp_path, FACTS)) == 7


def test_a_first_step_that_is_long_counts_for_nothing(tmp_path: Path) -> None:
    assert Machine(0.01, 400, first=[1.0]).start(Remembered.of(tmp_path, FACTS)) == 400
    assert Machine(0.01, 7, first=[1.0]).start(Remembered.of(tmp_path, FACTS)) == 400


def test_steps_that_were_held_up_are_measured_again_and_not_remembered(tmp_path: Path) -> None:
    """The weights' pages were still coming, so a step of 16 tokens seemed to be all that fits; now 16 take 40 ms."""
    held_up = Machine(0.04, 16)
    assert held_up.start(Remembered.of(tmp_path, FACTS), sure_step_tokens) == 160
    assert held_up.measurements == 2


def test_what_was_remembered_of_steps_that_were_held_up_does_not_hold(tmp_path: Path) -> None:
    Machine(0.04, 16).start(Remembered.of(tmp_path, FACTS))
    assert Machine(0.04, 400).start(Remembered.of(tmp_path, FACTS), sure_step_tokens) == 400


def test_other_facts_are_another_file(tmp_path: Path) -> None:
    Machine(0.01, 400).start(Remembered.of(tmp_path, FACTS))
    assert Machine(0.01, 7).start(Remembered.of(tmp_path, FACTS | {"threads": 3})) == 7


@pytest.mark.parametrize("contents", ["", "{}", "[]", '{"step_tokens": "x", "shortest": 1}'])
def test_a_damaged_file_or_none_is_measured(tmp_path: Path, contents: str) -> None:
    known = Remembered.of(tmp_path, FACTS)
    known.path.parent.mkdir()
    known.path.write_text(contents)
    assert Machine(0.01, 7).start(known) == 7
    blocked = Remembered(known.path / "below a file")
    assert Machine(0.01, 8).start(blocked) == 8
