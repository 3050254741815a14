"""Parts: what a delta holds, read; the finish reason and the log-probabilities go where they belong."""

from collections.abc import Sequence

from octavo.engine.api import FinishReason, TokenLogprobs
from octavo.server.conversation.parts import (
    Part,
    PartReader,
    PartReaders,
    Piece,
    Text,
    ToolCall,
    ToolCallArguments,
    ToolCallStart,
)
from octavo.server.generation.choices import Delta

SCORE = TokenLogprobs(-1.0)


class Scripted:
    """A parser that shows nothing before its end."""

    def __init__(self, *parts: Part) -> None:
        self.parts = parts

    def push(self, text: str) -> Sequence[Part]:
        return ()

    def flush(self) -> Sequence[Part]:
        return self.parts


def test_without_tools_all_is_text() -> None:
    readers = PartReaders()
    assert readers.read(Delta(1, "a", ((65, SCORE),))) == Piece(1, (Text("a"),), ((65, SCORE),))
    assert readers.read(Delta(1, "", (), FinishReason.STOP)) == Piece(1, (), (), FinishReason.STOP)


def test_each_choice_has_its_own_parser() -> None:
    made: list[Scripted] = []

    def parser() -> Scripted:
        made.append(Scripted())
        return made[-1]

    readers = PartReaders(parser)
    for index in (0, 1, 0, 2):
        readers.read(Delta(index, "a"))
    assert len(made) == 3


def test_held_text_holds_its_log_probabilities() -> None:
    reader = PartReader(Scripted(Text("ab")))
    assert reader.read(Delta(0, "a", ((65, SCORE),))) is None
    last = reader.read(Delta(0, "b", ((66, SCORE),), FinishReason.LENGTH))
    assert last == Piece(0, (Text("ab"),), ((65, SCORE), (66, SCORE)), FinishReason.LENGTH)


def test_calls_change_the_reason_of_an_answer_that_ended_by_itself() -> None:
    for reason, shown in ((FinishReason.STOP, "tool_calls"), (FinishReason.LENGTH, FinishReason.LENGTH)):
        piece = PartReader(Scripted(ToolCallStart(0, "i", "f"))).read(Delta(0, "", (), reason))
        assert piece is not None and piece.finish_reason == shown


def test_calls_are_the_join_of_their_parts() -> None:
    parts = (
        Text("a"),
        ToolCallStart(0, "i", "f"),
        ToolCallArguments(0, "{"),
        ToolCallArguments(0, "}"),
        ToolCallStart(1, "j", "g"),
    )
    piece = Piece(0, parts)
    assert (piece.text, piece.tool_calls) == ("a", [ToolCall("i", "f", "{}"), ToolCall("j", "g", "")])
