"""One step as plain data: what is to be computed, and what came of it."""

from dataclasses import dataclass

from octavo.engine.api import SamplingParams, TokenLogprobs

PENDING = -1  # a token that the step before this one is about to draw: its row is among the sampled ones of that step


@dataclass(frozen=True, slots=True)
class Row:
    """What one sequence does in one step: compute `tokens`, which stand at the positions from `start` on."""

    id: str
    start: int
    tokens: tuple[int, ...]  # the last may be PENDING
    blocks: tuple[int, ...]  # of the sequence, from its first position to at least `end`
    params: SamplingParams
    output: int | None  # the index of the output to sample after the last token; None: more of the prompt follows
    targets: tuple[int, ...] = ()  # prompt tokens to score: the one after its first token, after its second, ...
    history: tuple[int, ...] = ()  # all tokens up to its last, where its params look back; outputs stand at the end

    @property
    def end(self) -> int:
        """The position behind its last token."""
        return self.start + len(self.tokens)

    @property
    def is_answered(self) -> bool:
        """Whether a sample comes of it."""
        return self.output is not None or bool(self.targets)


@dataclass(frozen=True, slots=True)
class Batch:
    """One step. Plain data: a runner needs nothing else, and may live in another process."""

    rows: tuple[Row, ...]

    @property
    def sampled(self) -> list[Row]:
        """The rows that a token is sampled for, in order."""
        return [row for row in self.rows if row.output is not None]

    @property
    def answered(self) -> list[Row]:
        """The rows that something comes of, in order: one Sample for each."""
        return [row for row in self.rows if row.is_answered]

    @property
    def must_be_awaited(self) -> bool:
        """Whether its samples must be known before the next step is prepared.

        Grammars and penalties take in each token on the host, where the scores of prompts go, too.
        """
        return any(row.targets or row.history or (row.output is not None and row.params.grammar) for row in self.rows)


@dataclass(frozen=True, slots=True)
class Sample:
    """What came of one row."""

    token: int | None  # the next one; None when none was to be sampled, or none could be, as `error` says
    logprobs: TokenLogprobs | None = None
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()  # of the row's targets
    ended: bool = False  # nothing may follow: its grammar is fulfilled
    error: str = "The model's output was not a number."
