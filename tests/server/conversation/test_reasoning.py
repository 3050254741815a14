"""Tests that reasoning is found before an answer, cut anywhere, and that the answer's own parser gets the rest."""

import re
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.engine.api import FinishReason, TokenLogprobs
from octavo.server.conversation.calls import CallParser
from octavo.server.conversation.parts import AnswerParser, ParsedDelta, Part, PartParser, PlainText, Reasoning, Text
from octavo.server.conversation.reasoning import ReasoningParser
from octavo.server.generation.choices import Delta
from octavo.server.text.call_formats import JSON
from octavo.server.text.reasoning_tags import THINK

CALL = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'
ALPHABET = ["<think>", "</think>", "<thi", "</thi", "nk>", " ", "\n", "x", "é", "<", CALL, "<tool_call>", "{"]
texts = st.lists(st.sampled_from(ALPHABET), max_size=20).map("".join) | st.text(max_size=30)


def reading(begun: bool, tools: bool = False) -> ReasoningParser:
    answer: PartParser = CallParser(JSON, {"f": {}}, lambda: "id") if tools else PlainText()
    return ReasoningParser(THINK, begun, answer)


def parts_of(parser: PartParser, cut: Sequence[str]) -> list[Part]:
    parts = [part for text in cut for part in parser.push(text)]
    return [*parts, *parser.flush()]


def whole(begun: bool, text: str, tools: bool = False) -> tuple[str, str, list[str]]:
    """Returns reasoning, text and calls, and checks that they are the same however the text is cut."""
    cuts = [[text], list(text), re.findall(r"(?s).{1,3}", text), *([text[:at], text[at:]] for at in range(len(text)))]
    answers = [ParsedDelta(0, tuple(parts_of(reading(begun, tools), cut))) for cut in cuts]
    seen = [(each.reasoning, each.text, [call.arguments for call in each.tool_calls]) for each in answers]
    assert all(each == seen[0] for each in seen), text
    return seen[0]


@pytest.mark.parametrize(
    ("begun", "text", "reasoning", "content"),
    [
        (False, "<think>\nSo.\n\n1 + 1\n</think>\n\nTwo.\n", "So.\n\n1 + 1", "Two.\n"),
        (False, "\n\n<think>So.</think>Two.", "So.", "Two."),
        (False, "Two.", "", "Two."),
        (False, " \n Two.", "", " \n Two."),
        (False, "<think>\n\n</think>\n\nTwo.", "", "Two."),
        (False, "One, <think>two</think>", "", "One, <think>two</think>"),
        (False, "<thinking>", "", "<thinking>"),
        (False, "<thi", "", "<thi"),
        (False, "<think>So. </thi", "So. </thi", ""),
        (False, "<think>a<think>b</think>c</think>d", "a<think>b", "c</think>d"),
        (False, "<think>\n", "", ""),
        (False, "</think>", "", "</think>"),
        (True, "So.\n</think>\n\nTwo.", "So.", "Two."),
        (True, "<think>\nSo.\n</think>\n\nTwo.", "So.", "Two."),
        (True, "\n</think>\n\nTwo.", "", "Two."),
        (True, "So. I", "So. I", ""),
        (True, "<thin", "<thin", ""),
        (True, "", "", ""),
    ],
)
def test_reasoning_comes_first(begun: bool, text: str, reasoning: str, content: str) -> None:
    assert whole(begun, text) == (reasoning, content, [])


def test_calls_are_read_after_reasoning_and_not_within() -> None:
    assert whole(True, f"Like {CALL}?\n</think>\n\nSee:\n{CALL}", tools=True) == (f"Like {CALL}?", "See:", ['{"x": 1}'])
    assert whole(False, CALL, tools=True) == ("", "", ['{"x": 1}'])


@settings(max_examples=300)
@given(st.booleans(), st.booleans(), texts, st.data())
def test_any_text_in_any_pieces(begun: bool, tools: bool, text: str, data: st.DataObject) -> None:
    ends = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    cut = [text[start:end] for start, end in zip([0, *ends], [*ends, len(text)], strict=True)]
    pieces = ParsedDelta(0, tuple(parts_of(reading(begun, tools), cut)))
    at_once = ParsedDelta(0, tuple(parts_of(reading(begun, tools), [text])))
    assert (pieces.reasoning, pieces.text) == (at_once.reasoning, at_once.text)
    assert [call.arguments for call in pieces.tool_calls] == [call.arguments for call in at_once.tool_calls]
    reasoning, rest = expected(begun, text)
    assert at_once.reasoning == reasoning
    assert tools or at_once.text == rest


def expected(begun: bool, text: str) -> tuple[str, str]:
    """Returns what is reasoning in a whole text, and the rest."""
    written = text.lstrip()
    if not begun and not written.startswith(THINK.start):
        return "", text
    reasoning, _, rest = written.removeprefix(THINK.start).partition(THINK.end)
    return reasoning.strip(), rest.lstrip()


def test_reasoning_is_passed_on_while_it_arrives() -> None:
    parser = reading(begun=False)
    assert list(parser.push("<think>\nSo")) == [Reasoning("So")]
    assert parser.stage == "reasoning"
    assert list(parser.push(" it is")) == [Reasoning(" it is")]
    assert list(parser.push(".\n</th")) == [Reasoning(".")]
    assert list(parser.push("ink>\n\nTwo")) == [Text("Two")]
    assert parser.stage == "answer"


def test_tokens_of_reasoning_are_counted_with_their_tags_and_have_no_log_probabilities() -> None:
    answer = AnswerParser(lambda: reading(begun=False))
    score = TokenLogprobs(-1.0)
    pieces = ["<think>", "\n", "So", ".", "\n", "</think>", "\n\n", "Two", "."]
    deltas = [Delta(0, text, ((id, score),), tokens=1) for id, text in enumerate(pieces)]
    parsed = answer.whole([*deltas, Delta(0, "", (), FinishReason.STOP, tokens=1)])
    assert parsed is not None
    assert (parsed.reasoning, parsed.text, answer.reasoning_tokens) == ("So.", "Two.", 6)
    assert [id for id, _ in parsed.logprobs] == [6, 7, 8]


def test_every_choice_counts() -> None:
    answer = AnswerParser(lambda: reading(begun=True))
    for index in (0, 1, 0):
        answer.feed(Delta(index, "So", tokens=2))
    assert answer.reasoning_tokens == 6
