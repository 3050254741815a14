"""Tests that deltas are split into parts, and that finish reasons and log-probabilities go with the right ones."""

from collections.abc import Sequence

from octavo.engine.api import FinishReason, TokenLogprobs
from octavo.server.conversation.parts import (
    AnswerParser,
    ChoiceParser,
    ParsedDelta,
    Part,
    Stage,
    Text,
    ToolCall,
    ToolCallArguments,
    ToolCallStart,
)
from octavo.server.generation.choices import Delta

SCORE = TokenLogprobs(-1.0)


class Scripted:
    """Implements PartParser, and shows nothing before its end."""

    stage: Stage = "answer"

    def __init__(self, *parts: Part) -> None:
        self.parts = parts

    def push(self, text: str) -> Sequence[Part]:
        return ()

    def flush(self) -> Sequence[Part]:
        return self.parts


def test_without_tools_all_is_text() -> None:
    parser = AnswerParser()
    assert parser.feed(Delta(1, "a", ((65, SCORE),))) == ParsedDelta(1, (Text("a"),), ((65, SCORE),))
    assert parser.feed(Delta(1, "", (), FinishReason.STOP)) == ParsedDelta(1, (), (), FinishReason.STOP)


def test_each_choice_has_its_own_parser() -> None:
    made: list[Scripted] = []

    def parser() -> Scripted:
        made.append(Scripted())
        return made[-1]

    answer = AnswerParser(parser)
    for index in (0, 1, 0, 2):
        answer.feed(Delta(index, "a"))
    assert len(made) == 3


def test_held_text_holds_its_log_probabilities() -> None:
    choice = ChoiceParser(Scripted(Text("ab")))
    assert choice.feed(Delta(0, "a", ((65, SCORE),))) is None
    last = choice.feed(Delta(0, "b", ((66, SCORE),), FinishReason.LENGTH))
    assert last == ParsedDelta(0, (Text("ab"),), ((65, SCORE), (66, SCORE)), FinishReason.LENGTH)


def test_calls_change_the_reason_of_an_answer_that_ended_by_itself() -> None:
    for reason, shown in ((FinishReason.STOP, "tool_calls"), (FinishReason.LENGTH, FinishReason.LENGTH)):
        parsed = ChoiceParser(Scripted(ToolCallStart(0, "i", "f"))).feed(Delta(0, "", (), reason))
        assert parsed is not None and parsed.finish_reason == shown


def test_calls_are_the_join_of_their_parts() -> None:
    parts = (
        Text("a"),
        ToolCallStart(0, "i", "f"),
        ToolCallArguments(0, "{"),
        ToolCallArguments(0, "}"),
        ToolCallStart(1, "j", "g"),
    )
    parsed = ParsedDelta(0, parts)
    assert (parsed.text, parsed.tool_calls) == ("a", [ToolCall("i", "f", "{}"), ToolCall("j", "g", "")])
