"""Lists the edits that a row's parameters make to its logits. The list is made on the host, and is kept between steps.

    logit' = (logit / penalty if logit > 0 else logit * penalty) + addend

The repetition penalty (Keskar et al., https://arxiv.org/abs/1909.05858) comes first, since it scales the model's own
logits. The addend is the sum of frequency penalty, presence penalty and bias, as OpenAI defines them. It is -inf for a
token that may not come yet. A row's edits follow from its own tokens alone, so batching and preemption cannot change
them.

A new token changes one place of its sequence's list. So a step copies a row's list, which has a place for each
different token of the text, and does not go through the text again.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from octavo.engine.api import SamplingParams
from octavo.engine.schedule.batch import Row

Ids = NDArray[np.int64]
Numbers = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Edits:
    """Edits hold each cell of the logits [R, V] at most once."""

    rows: Ids  # [E]
    tokens: Ids  # [E]
    penalties: Numbers  # [E], 1 changes nothing
    addends: Numbers  # [E]


@dataclass(slots=True)
class RowEdits:
    """RowEdits list what the tokens of one sequence, as far as they are counted, change in its logits.

    The arrays are longer than the list, so that it can grow.
    """

    params: SamplingParams
    vocab: int
    counted: int  # tokens of the history
    size: int  # E, how many tokens the list has
    tokens: Ids  # [>= E]
    counts: Ids  # [>= E] how often each was generated
    biases: Numbers  # [>= E]
    penalties: Numbers  # [>= E]
    addends: Numbers  # [>= E]
    places: dict[int, int]  # token -> its place in the list

    @classmethod
    def of(cls, row: Row, vocab: int) -> "RowEdits":
        """Counts the whole history of a row."""
        params = row.params
        history = np.array(row.history[:], np.int64)
        seen = np.unique(history) if params.repetition_penalty != 1 else history[:0]
        generated, counts = np.unique(history[len(history) - (row.output or 0) :], return_counts=True)
        biased = np.array([token for token, _ in params.logit_bias], np.int64)
        banned = np.array(params.stop_token_ids if params.min_tokens else (), np.int64)
        tokens = np.unique(np.concatenate((seen, generated, biased, banned)))
        tokens = tokens[: np.searchsorted(tokens, vocab)]
        size = len(tokens)
        made = cls(
            params,
            vocab,
            counted=len(row.history),
            size=size,
            tokens=tokens,
            counts=np.zeros(size, np.int64),
            biases=np.zeros(size),
            penalties=np.where(np.isin(tokens, seen), params.repetition_penalty, 1.0),
            addends=np.zeros(size),
            places=dict(zip(tokens.tolist(), range(size), strict=True)),
        )
        for token, bias in params.logit_bias:
            if token < vocab:
                made.biases[made.places[token]] = bias
        known = generated < vocab
        made.counts[np.searchsorted(tokens, generated[known])] = counts[known]
        made.addends[:] = made._addends(slice(size))
        return made

    def _addends(self, places: slice) -> Numbers:
        counts, params = self.counts[places], self.params
        once = np.where(counts > 0, params.presence_penalty, 0.0)
        addends: Numbers = (-params.frequency_penalty * counts - once) + self.biases[places]
        return addends

    def take(self, token: int) -> None:
        """Counts one more token, which was generated."""
        self.counted += 1
        if token >= self.vocab:
            return
        place = self.places.setdefault(token, self.size)
        if place == self.size:
            self._append(token)
        self.counts[place] += 1
        self.penalties[place] = self.params.repetition_penalty
        self.addends[place] = self._addends(slice(place, place + 1))[0]

    def _append(self, token: int) -> None:
        """Adds a token to the list, which changes nothing yet."""
        if self.size == len(self.tokens):
            more = max(16, self.size)
            for name in ("tokens", "counts", "biases", "penalties", "addends"):
                setattr(self, name, np.pad(getattr(self, name), (0, more)))
        self.tokens[self.size], self.penalties[self.size] = token, 1.0
        self.size += 1


@dataclass(slots=True)
class EditTables:
    """EditTables keep the lists of the rows that the last step sampled, by the id of the row.

    Whoever misses a step, since it was preempted, is counted anew when it comes back.
    """

    kept: dict[str, RowEdits] = field(default_factory=dict)

    def edits(self, rows: Sequence[Row], vocab: int) -> Edits | None:
        """Returns the edits of a batch for ids below `vocab`; returns None when no row asks for any."""
        changed = [(index, row) for index, row in enumerate(rows) if _changes(row)]
        found = [self._counted(row, vocab) for _, row in changed]
        self.kept = {row.id: each for (_, row), each in zip(changed, found, strict=True)}
        if not changed:
            return None
        sizes = [each.size for each in found]
        addends = np.concatenate([each.addends[: each.size] for each in found])
        for start, each, (_, row) in zip(accumulate(sizes, initial=0), found, changed, strict=False):
            for token in _banned(row):
                if token in each.places:
                    addends[start + each.places[token]] = -np.inf
        return Edits(
            rows=np.repeat([index for index, _ in changed], sizes),
            tokens=np.concatenate([each.tokens[: each.size] for each in found]),
            penalties=np.concatenate([each.penalties[: each.size] for each in found]),
            addends=addends,
        )

    def _counted(self, row: Row, vocab: int) -> RowEdits:
        """Returns the list of a row: that of the step before with what is new, or one that is made anew."""
        kept = self.kept.get(row.id)
        if kept is None or kept.params is not row.params or kept.vocab != vocab or kept.counted > len(row.history):
            return RowEdits.of(row, vocab)
        for token in row.history[kept.counted :]:
            kept.take(token)
        return kept


def _changes(row: Row) -> bool:
    """Returns whether the row's parameters may change a logit."""
    return bool(row.history or row.params.logit_bias or _banned(row))


def _banned(row: Row) -> tuple[int, ...]:
    """Returns the tokens that may not come yet, since they would end the sequence before min_tokens."""
    return row.params.stop_token_ids if (row.output or 0) < row.params.min_tokens else ()
