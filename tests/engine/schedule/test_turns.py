"""Callers take turns, whatever each of them asks for."""

from octavo.engine.schedule.turns import Turns


def test_callers_take_turns() -> None:
    turns: Turns[int] = Turns()
    for caller, item in (("a", 1), ("a", 2), ("a", 3), ("b", 4), ("c", 5), ("b", 6)):
        turns.add(caller, item)
    assert (len(turns), turns.waiting("a"), turns.waiting("z")) == (6, 3, 0)
    assert [turns.take() for _ in range(7)] == [("a", 1), ("b", 4), ("c", 5), ("a", 2), ("b", 6), ("a", 3), None]


def test_who_is_passed_over_keeps_its_turn() -> None:
    turns: Turns[int] = Turns()
    for caller, item in (("a", 1), ("b", 2), ("b", 3)):
        turns.add(caller, item)
    assert turns.take({"a"}) == ("b", 2)
    assert turns.take({"b"}) == ("a", 1)
    assert turns.take({"b"}) is None
    assert turns.take() == ("b", 3)
