"""Splits the text of an answer into parts: reasoning, text, and calls of tools."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from octavo.engine.api import FinishReason, TokenLogprobs
from octavo.server.generation.choices import Delta

Ended = FinishReason | Literal["tool_calls"]
Stage = Literal["reasoning", "markup", "answer"]


@dataclass(frozen=True, slots=True)
class Text:
    """Is text of the assistant's message."""

    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """Is text that the model wrote for itself before it answered."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallStart:
    """Begins a call. `index` counts the calls of one choice from 0."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class ToolCallArguments:
    """Adds to the JSON text of a call that has begun."""

    index: int
    fragment: str


Part = Text | Reasoning | ToolCallStart | ToolCallArguments


@dataclass(frozen=True, slots=True)
class ToolCall:
    """Is a whole call, joined from its parts."""

    id: str
    name: str
    arguments: str  # JSON text


@dataclass(frozen=True, slots=True)
class ParsedDelta:
    """A ParsedDelta is a Delta whose text has been split into parts."""

    index: int  # the choice's
    parts: tuple[Part, ...]
    logprobs: tuple[tuple[int, TokenLogprobs], ...] = ()  # (token id, its log-probabilities) of the answer
    finish_reason: Ended | None = None

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.parts if isinstance(part, Text))

    @property
    def reasoning(self) -> str:
        return "".join(part.text for part in self.parts if isinstance(part, Reasoning))

    @property
    def tool_calls(self) -> list[ToolCall]:
        """Returns the calls that begin in this delta; all of them if it is a whole answer."""
        fragments: dict[int, list[str]] = {}
        for part in self.parts:
            if isinstance(part, ToolCallArguments):
                fragments.setdefault(part.index, []).append(part.fragment)
        starts = (part for part in self.parts if isinstance(part, ToolCallStart))
        return [ToolCall(start.id, start.name, "".join(fragments.get(start.index, ()))) for start in starts]


def joined(deltas: Sequence[ParsedDelta]) -> ParsedDelta:
    """Returns one delta that has the parts of several of one choice."""
    return ParsedDelta(
        deltas[-1].index,
        tuple(part for delta in deltas for part in delta.parts),
        tuple(entry for delta in deltas for entry in delta.logprobs),
        deltas[-1].finish_reason,
    )


class PartParser(Protocol):
    """Finds the parts in the text of one choice, which comes cut in any way.

    It never raises: what is not a call is text. However the text is cut, the join of the parts is the same.
    """

    @property
    def stage(self) -> Stage:
        """Returns what the text so far ends within; markup is what stands between reasoning and answers."""

    def push(self, text: str) -> Iterable[Part]:
        """Returns the parts that have become certain; holds back text that may yet begin a call."""

    def flush(self) -> Iterable[Part]:
        """Returns what was held back, once nothing can follow."""


class PlainText:
    """Implements PartParser for answers without reasoning and tools: all is text."""

    stage: Stage = "answer"

    def push(self, text: str) -> Sequence[Part]:
        return (Text(text),) if text else ()

    def flush(self) -> Sequence[Part]:
        return ()


class ChoiceParser:
    """Parses the deltas of one choice; log-probabilities go with the text that their tokens made.

    A delta is reasoning if the text is within reasoning before or after it, so that the tags are reasoning, too. It is
    the answer's if the text is within the answer before and after it.
    """

    def __init__(self, parser: PartParser) -> None:
        self.reasoning_tokens = 0
        self._parser = parser
        self._logprobs: list[tuple[int, TokenLogprobs]] = []  # belong to tokens whose text is held back
        self._called = False
        self._arguments: list[str] = []  # the last call's

    def feed(self, delta: Delta) -> ParsedDelta | None:
        """Returns None when there is nothing to show."""
        stages = [self._parser.stage]
        parts = [*self._parser.push(delta.text)]
        stages.append(self._parser.stage)
        if delta.finish_reason is not None:
            parts += self._parser.flush()
        self._note_calls(parts)
        self.reasoning_tokens += delta.tokens if "reasoning" in stages else 0
        self._logprobs += delta.logprobs if stages == ["answer", "answer"] else ()
        if not parts and delta.finish_reason is None:
            return None
        logprobs, self._logprobs = tuple(self._logprobs), []
        return ParsedDelta(delta.index, tuple(parts), logprobs, self._ended(delta.finish_reason))

    def _ended(self, reason: FinishReason | None) -> Ended | None:
        """Returns why the choice ended. A call that was broken off must not be made, so it does not end in calls."""
        is_for_calls = self._called and _is_whole("".join(self._arguments))
        return "tool_calls" if reason is FinishReason.STOP and is_for_calls else reason

    def _note_calls(self, parts: Sequence[Part]) -> None:
        for part in parts:
            if isinstance(part, ToolCallStart):
                self._called, self._arguments = True, []
            elif isinstance(part, ToolCallArguments):
                self._arguments.append(part.fragment)


def _is_whole(arguments: str) -> bool:
    """Returns whether the JSON text of a call is complete; a call without arguments has none."""
    try:
        json.loads(arguments or "{}", parse_int=str)  # the digits of a number are not counted
    except ValueError:
        return False
    except RecursionError:
        return True  # nested beyond what Python reads: it was complete that far
    return True


class AnswerParser:
    """Holds a ChoiceParser for each choice of an answer."""

    def __init__(self, new_parser: Callable[[], PartParser] = PlainText) -> None:
        """`new_parser` makes the PartParser of each choice."""
        self._new_parser = new_parser
        self._choices: dict[int, ChoiceParser] = {}  # index of the choice -> its parser

    @property
    def reasoning_tokens(self) -> int:
        """Returns how many tokens of all choices so far were reasoning."""
        return sum(choice.reasoning_tokens for choice in self._choices.values())

    def whole(self, deltas: Iterable[Delta]) -> ParsedDelta | None:
        """Returns all deltas of a choice as one; None if there is nothing to show."""
        found = [parsed for delta in deltas if (parsed := self.feed(delta)) is not None]
        return joined(found) if found else None

    def feed(self, delta: Delta) -> ParsedDelta | None:
        """Returns None when there is nothing to show."""
        if delta.index not in self._choices:
            self._choices[delta.index] = ChoiceParser(self._new_parser())
        return self._choices[delta.index].feed(delta)
