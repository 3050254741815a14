"""StopStrings never shows a part of a stop string, whatever the pieces that the text arrives in."""

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.server.text.stop import StopStrings


def run(stops: Sequence[str], pieces: Sequence[str], include: bool = False) -> tuple[str, bool]:
    matcher = StopStrings(stops, include)
    shown = ""
    for piece in pieces:
        text, stopped = matcher.push(piece)
        shown += text
        if stopped:
            return shown, True
    return shown + matcher.flush(), False


def expected(stops: Sequence[str], text: str) -> tuple[str, bool]:
    """Returns the result of the slow, obvious search, which looks at each beginning of the text in turn."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))], True
    return text, False


@settings(derandomize=True, max_examples=1000, deadline=None)
@given(
    st.lists(st.text("ab#", min_size=1, max_size=5), max_size=4),
    st.lists(st.text("ab#", max_size=4), max_size=12),
)
def test_as_the_obvious_search_over_the_whole_text(stops: list[str], pieces: list[str]) -> None:
    assert run(stops, pieces) == expected(stops, "".join(pieces))


@settings(derandomize=True, max_examples=300, deadline=None)
@given(st.lists(st.text("ab#", min_size=1, max_size=5), max_size=4), st.lists(st.text("ab#", max_size=4), max_size=12))
def test_the_text_may_end_with_its_stop_string(stops: list[str], pieces: list[str]) -> None:
    text = "".join(pieces)
    ends = (end for end in range(len(text) + 1) if any(text[:end].endswith(stop) for stop in stops))
    assert run(stops, pieces, include=True)[0] == text[: next(ends, len(text))]


@settings(derandomize=True, max_examples=500, deadline=None)
@given(st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=4), st.lists(st.text("ab"), max_size=12))
def test_what_was_shown_is_never_part_of_a_stop_string_later(stops: list[str], pieces: list[str]) -> None:
    matcher, text, shown = StopStrings(stops), "", ""
    for piece in pieces:
        text += piece
        released, stopped = matcher.push(piece)
        shown += released
        if stopped:
            break
        assert any(stop.startswith(text[len(shown) :]) for stop in stops), "no more is held back than may begin one"


def test_held_back_until_the_next_characters_decide() -> None:
    matcher = StopStrings(["###"])
    assert [matcher.push(piece) for piece in ("Hi #", "#", " no", "##")] == [
        ("Hi ", False),
        ("", False),
        ("## no", False),
        ("", False),
    ]
    assert matcher.flush() == "##"
    assert matcher.flush() == ""


def test_one_stop_string_within_another() -> None:
    assert run(["abcd", "c"], ["ab", "cd"]) == ("ab", True)
    assert run(["c", "bc"], ["abc"]) == ("a", True)


def test_the_stop_string_that_ended_the_text_is_known() -> None:
    matcher = StopStrings(["c", "bc", "x"])
    assert matcher.push("ab") == ("a", False)
    assert matcher.matched is None
    matcher.push("c")
    assert matcher.matched == "bc"


def test_a_long_stop_string_costs_no_more() -> None:
    stop = "a" * 100_000 + "b"
    assert run([stop], ["a" * 200_000]) == ("a" * 200_000, False)


def test_none() -> None:
    assert run([], ["abc"]) == ("abc", False)
