"""Batch says what a step computes, and Sample what came of one of its rows. Both are plain data."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

from octavo.engine.api import Routes, SamplingParams, TokenLogprobs

NOT_A_NUMBER = "The model's output was not a number."
PENDING = -1  # stands for a token that the step before is about to draw; that step samples a row of the same id


@dataclass(frozen=True, slots=True)
class History(Sequence[int]):
    """A History is the first `length` tokens of a sequence. They never change, so that no step has to copy them."""

    tokens: Sequence[int]  # It belongs to the scheduler, which appends to it.
    length: int

    def __len__(self) -> int:
        return self.length

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[int]: ...
    def __getitem__(self, index: int | slice) -> int | Sequence[int]:
        if isinstance(index, slice):
            return self.tokens[slice(*index.indices(self.length))]
        return self.tokens[range(self.length)[index]]


@dataclass(frozen=True, slots=True)
class Row:
    """A Row is the part of a batch that computes one sequence: its `tokens` at the positions from `start` on."""

    id: str
    start: int
    tokens: tuple[int, ...]  # the last may be PENDING
    blocks: Sequence[int]  # the blocks of the sequence, from its first position to at least `end`
    params: SamplingParams
    output: int | None  # the index of the output to sample after the last token; None: more of the prompt follows
    targets: tuple[int, ...] = ()  # prompt tokens to score: target i follows token i of the row
    history: Sequence[int] = ()  # if its params look back: all tokens of the sequence, outputs last
    first_new: int = 0  # The sequence had no position from here on before, computed or cached.
    routes_from: int | None = None  # the first position whose routes are to be told; None: none are

    @property
    def end(self) -> int:
        """Returns the position behind its last token."""
        return self.start + len(self.tokens)


@dataclass(frozen=True, slots=True)
class Batch:
    """A Batch holds all that a runner needs for a step. As plain data, it could be sent to another process."""

    rows: tuple[Row, ...]

    @property
    def sampled(self) -> list[Row]:
        """Returns the rows that a token is sampled for, in order."""
        return [row for row in self.rows if row.output is not None]

    @property
    def must_be_awaited(self) -> bool:
        """Returns whether its samples must be known before the next step is scheduled.

        Grammars and penalties take in each token on the host, and the scores of prompts are counted there.
        """
        return any(row.targets or row.history or (row.output is not None and row.params.grammar) for row in self.rows)


@dataclass(frozen=True, slots=True)
class Sample:
    """A Sample is what came of one row."""

    token: int | None  # None: no token was to be sampled, or none could be, for the reason in `error`
    logprobs: TokenLogprobs | None = None
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()  # one for each of the row's targets
    ended: bool = False  # nothing may follow: its grammar is fulfilled or, without a token, cannot be followed further
    error: str = NOT_A_NUMBER
    is_finite: bool = True  # whether the model's states of all tokens of the row are
    routes: Routes | None = None  # of the positions from the row's `routes_from` to its end, if that comes first
