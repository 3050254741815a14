"""Tests that answers in harmony are read, cut anywhere; what is malformed stays text, and nothing raises."""

import re
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.engine.api import FinishReason, TokenLogprobs
from octavo.server.conversation.harmony import HarmonyParser
from octavo.server.conversation.parts import AnswerParser, ParsedDelta, Part, ToolCallStart
from octavo.server.generation.choices import Delta
from octavo.server.text.harmony import MARKERS

OPENED = "<|start|>assistant"
THINK = "<|channel|>analysis<|message|>So.<|end|>"
SAY = "<|start|>assistant<|channel|>final<|message|>Two."
CALL = '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"x": 1}'
ALPHABET = [
    *(*MARKERS, THINK, SAY, CALL, "<|", "|>", "assistant", "analysis", "final", "commentary", " to=functions.f", "to="),
    *("json", "{", "}", '{"x": 1}', " ", "\n", "x", "é", "f", "<"),
]
texts = st.lists(st.sampled_from(ALPHABET), max_size=20).map("".join) | st.text(max_size=30)


def parts_of(cut: Sequence[str], header: str = OPENED, parallel: bool = True) -> list[Part]:
    parser = HarmonyParser(header, frozenset({"f", "g.h"}), lambda: "id", parallel)
    parts = [part for text in cut for part in parser.push(text)]
    return parts + parser.flush()


def seen_in(parts: Sequence[Part]) -> tuple[str, str, list[tuple[str, str]]]:
    answer = ParsedDelta(0, tuple(parts))
    return answer.reasoning, answer.text, [(call.name, call.arguments) for call in answer.tool_calls]


def whole(text: str, header: str = OPENED, parallel: bool = True) -> tuple[str, str, list[tuple[str, str]]]:
    """Returns reasoning, text and calls, and checks that they are the same however the text is cut."""
    cuts = [[text], list(text), re.findall(r"(?s).{1,3}", text), *([text[:at], text[at:]] for at in range(len(text)))]
    seen = [seen_in(parts_of(cut, header, parallel)) for cut in cuts]
    assert all(each == seen[0] for each in seen), text
    return seen[0]


@pytest.mark.parametrize(
    ("text", "reasoning", "content"),
    [
        (THINK + SAY, "So.", "Two."),
        ("<|channel|>final<|message|>Two.", "", "Two."),
        (THINK + THINK.replace("So", "Or") + SAY, "So.\n\nOr.", "Two."),
        (THINK + "<|start|>assistant<|channel|>commentary<|message|>Plan:<|end|>" + SAY, "So.", "Plan:\n\nTwo."),
        ("<|channel|>analysis<|message|>So. I", "So. I", ""),
        (THINK, "So.", ""),
        (THINK + "<|start|>assistant", "So.", ""),
        (THINK + "<|start|>assistant<|channel|>fin", "So.", ""),
        (THINK.replace("<|end|>", "") + SAY, "So.", "Two."),
        (THINK.replace("<|end|>", "") + "<|channel|>final<|message|>Two.", "So.", "Two."),
        (THINK + "<|end|>\n" + SAY + "<|return|>", "So.", "Two."),
        (THINK + "<|channel|>final <|constrain|>json<|message|>{}", "So.", "{}"),
        ("<|message|>Two.", "", "Two."),
        ("<|channel|>final<|message|>  Two\n", "", "  Two\n"),
        ("<|channel|>analysis<|message|><|end|>" + SAY, "", "Two."),
        ("<|channel|>analysis to=python<|message|>print(2)<|call|>", "print(2)", ""),
    ],
)
def test_reasoning_and_text(text: str, reasoning: str, content: str) -> None:
    assert whole(text) == (reasoning, content, [])


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        (CALL, [("f", '{"x": 1}')]),
        (CALL + "<|call|>", [("f", '{"x": 1}')]),
        (' to=functions.f<|channel|>commentary json<|message|>{"x": 1}<|call|>', [("f", '{"x": 1}')]),
        ('<|start|>assistant to=functions.f<|channel|>commentary<|message|> {"x": 1}', [("f", '{"x": 1}')]),
        ("<|channel|>analysis to=functions.f<|message|>{}", [("f", "{}")]),
        ("<|channel|>commentary to=functions.g.h<|constrain|>json<|message|>{}", [("g.h", "{}")]),
        ("<|channel|>commentary to=f<|message|>{}", [("f", "{}")]),
        ("<|channel|>commentary to=functions.f<|message|>", [("f", "{}")]),
        ("<|channel|>commentary to=functions.f<|message|> <|call|>", [("f", "{}")]),
        (CALL + "<|call|><|start|>assistant" + CALL, [("f", '{"x": 1}'), ("f", '{"x": 1}')]),
    ],
)
def test_calls(text: str, calls: list[tuple[str, str]]) -> None:
    assert whole(text) == ("", "", calls)
    assert whole(THINK + "<|start|>assistant" + text.removeprefix("<|start|>assistant")) == ("So.", "", calls)


@pytest.mark.parametrize(
    "text",
    [
        "Two.",
        "Two",
        "to",
        "to be",
        "to=be",
        "<",
        "<|chan",
        "<|channel|>final Two.",
        "<|channel|>commentary to=functions.unknown <|constrain|>json<|message|>{}",
        "<|constrain|>" + "x" * 600,
        "<|channel|>" + "x" * 600 + "<|message|>",
    ],
)
def test_what_is_malformed_stays_text(text: str) -> None:
    assert whole(text) == ("", text, [])


def test_text_between_messages_is_text() -> None:
    assert whole(THINK + "Hm. " + SAY) == ("So.", "Hm. \n\nTwo.", [])
    assert whole("<|channel|>analysis Hm." + SAY) == ("", "<|channel|>analysis Hm.\n\nTwo.", [])


def test_the_prompt_may_have_begun_the_message() -> None:
    assert whole(" it is.", OPENED + "<|channel|>final<|message|>") == ("", " it is.", [])
    assert whole(" it is.<|end|>" + SAY, OPENED + "<|channel|>analysis<|message|>") == (" it is.", "Two.", [])


def test_only_one_call_where_no_more_are_wanted() -> None:
    assert whole(CALL + "<|call|><|start|>assistant" + CALL, parallel=False) == ("", "", [("f", '{"x": 1}')])


@settings(max_examples=400)
@given(texts, st.sampled_from([OPENED, OPENED + "<|channel|>analysis<|message|>", ""]), st.data())
def test_any_text_in_any_pieces(text: str, header: str, data: st.DataObject) -> None:
    ends = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    cut = [text[start:end] for start, end in zip([0, *ends], [*ends, len(text)], strict=True)]
    assert seen_in(parts_of(cut, header)) == seen_in(parts_of([text], header))


@given(st.text(alphabet="abé <|{}=:\n", max_size=40))
def test_text_without_markers_comes_through(text: str) -> None:
    assert whole(text) == ("", text if text.strip() else "", [])
    assert whole(THINK + SAY + text) == ("So.", "Two." + text, [])


def test_arguments_arrive_as_they_are_written() -> None:
    parser = HarmonyParser(OPENED, frozenset({"f"}), lambda: "id")
    assert parser.push(CALL.partition("{")[0]) == [ToolCallStart(0, "id", "f")]
    assert [parser.push(piece)[0] for piece in ('{"x"', ": ", "1}")]
    assert parser.flush() == []


def test_tokens_of_reasoning_are_counted_and_only_the_answer_s_have_log_probabilities() -> None:
    pieces = ["<|channel|>", "analysis", "<|message|>", "So", ".", "<|end|>", "<|start|>", "assistant", "<|channel|>"]
    pieces += ["final", "<|message|>", "Two", "."]
    answer = AnswerParser(lambda: HarmonyParser(OPENED, frozenset(), lambda: "id"))
    score = TokenLogprobs(-1.0)
    deltas = [Delta(0, text, ((id, score),), tokens=1) for id, text in enumerate(pieces)]
    parsed = answer.whole([*deltas, Delta(0, "", (), FinishReason.STOP, tokens=1)])
    assert parsed is not None and (parsed.reasoning, parsed.text) == ("So.", "Two.")
    assert answer.reasoning_tokens == 4  # <|message|> to <|end|>
    assert [pieces[id] for id, _ in parsed.logprobs] == ["Two", "."]
