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


Piece = tuple[str, bool]  # text, and whether it is hidden


def expected_with_hidden(stops: Sequence[str], pieces: Sequence[Piece]) -> tuple[str, bool]:
    """Returns the result of the slow, obvious search, which looks at the shown text and at all text."""
    all_text: list[Piece] = [(character, hidden) for text, hidden in pieces for character in text]
    for end in range(1, len(all_text) + 1):
        shown = [place for place in range(end) if not all_text[place][1]]
        cuts = []
        for stop in stops:
            if "".join(character for character, _ in all_text[:end]).endswith(stop):
                cuts.append(end - len(stop))
            if not all_text[end - 1][1] and "".join(all_text[place][0] for place in shown).endswith(stop):
                cuts.append(shown[-len(stop)])
        if cuts:
            return "".join(all_text[place][0] for place in shown if place < min(cuts)), True
    return "".join(text for text, hidden in pieces if not hidden), False


@settings(derandomize=True, max_examples=2000, deadline=None)
@given(
    st.lists(st.text("ab<", min_size=1, max_size=4), max_size=4),
    st.lists(st.tuples(st.text("ab<", max_size=3), st.booleans()), max_size=10),
)
def test_stop_strings_may_contain_what_is_hidden(stops: list[str], pieces: list[Piece]) -> None:
    matcher, shown, stopped = StopStrings(stops), "", False
    for text, hidden in pieces:
        released, stopped = matcher.push(text, hidden)
        shown += released
        if stopped:
            break
    assert (shown + ("" if stopped else matcher.flush()), stopped) == expected_with_hidden(stops, pieces)


def test_a_stop_string_of_text_and_a_special_token() -> None:
    for include, text in ((False, "Hi"), (True, "Hi\n<|end|>")):
        matcher = StopStrings(["\n<|end|>"], include)
        pieces = [("Hi", False), ("\n", False), ("<|end|>", True)]
        assert "".join(matcher.push(*piece)[0] for piece in pieces) == text
    matcher = StopStrings(["\n<|end|>"])
    assert [matcher.push(*piece)[0] for piece in (("\n", False), ("<|other|>", True), ("a", False))] == ["", "", "\na"]


def test_hidden_text_without_end_is_not_kept() -> None:
    matcher = StopStrings(["ab"])
    matcher.push("a")
    for _ in range(1000):
        assert matcher.push("<s>", hidden=True) == ("", False)
    assert matcher.push("b") == ("", True)


def test_many_long_stop_strings_are_told_apart() -> None:
    stops = [letter * 1000 + str(number) for letter in "ab" for number in range(64)]
    assert run(stops, ["a" * 1500, "b" * 1500, "17", "c"]) == ("a" * 1500 + "b" * 500, True)
    assert run(stops, ["ab" * 20_000]) == ("ab" * 20_000, False)


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
