"""Lists the edits that a row's parameters make to its logits. The list is made on the host, and is short.

    logit' = (logit / penalty if logit > 0 else logit * penalty) + addend

The repetition penalty (Keskar et al., https://arxiv.org/abs/1909.05858) comes first, since it scales the model's own
logits. The addend is the sum of frequency penalty, presence penalty and bias, as OpenAI defines them. It is -inf for a
token that may not come yet. A row's edits follow from its own tokens alone, so batching and preemption cannot change
them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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


def edits(rows: Sequence[Row], vocab: int) -> Edits | None:
    """Returns the edits of a batch for ids below `vocab`; returns None when no row asks for any."""
    changed = [index for index, row in enumerate(rows) if _changes(row)]
    if not changed:
        return None
    found = [_edits_of(rows[index]) for index in changed]
    owners = np.repeat(changed, [len(tokens) for tokens, _, _ in found])
    tokens, penalties, addends = (np.concatenate(column) for column in zip(*found, strict=True))
    known = tokens < vocab
    return Edits(owners[known], tokens[known], penalties[known], addends[known])


def _changes(row: Row) -> bool:
    """Returns whether the row's parameters may change a logit."""
    return bool(row.history or row.params.logit_bias or _banned(row))


def _banned(row: Row) -> tuple[int, ...]:
    """Returns the tokens that may not come yet, since they would end the sequence before min_tokens."""
    return row.params.stop_token_ids if (row.output or 0) < row.params.min_tokens else ()


def _edits_of(row: Row) -> tuple[Ids, Numbers, Numbers]:
    """Returns the tokens that a row changes, in ascending order, with their penalties and addends. [E] each"""
    params, banned = row.params, _banned(row)
    history = np.array(row.history, np.int64)
    seen = np.unique(history) if params.repetition_penalty != 1 else history[:0]
    generated, counts = np.unique(history[len(history) - (row.output or 0) :], return_counts=True)
    biased = np.array([token for token, _ in params.logit_bias], np.int64)
    added = (
        (generated, -params.frequency_penalty * counts - params.presence_penalty),
        (biased, np.array([bias for _, bias in params.logit_bias], np.float64)),
        (np.array(banned, np.int64), np.full(len(banned), -np.inf)),
    )
    places = np.concatenate([seen, *(tokens for tokens, _ in added)])
    values = np.concatenate([np.zeros(len(seen)), *(values for _, values in added)])
    tokens, where = np.unique(places, return_inverse=True)
    penalties = np.where(np.isin(tokens, seen), params.repetition_penalty, 1.0)
    addends: Numbers = np.bincount(where, values, len(tokens)).astype(np.float64)  # integers, if empty
    return tokens, penalties, addends
