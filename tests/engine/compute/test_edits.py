"""Compares edits with the obvious way to make them."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.engine.api import SamplingParams
from octavo.engine.compute.edits import Edits, EditTables, RowEdits
from octavo.engine.schedule.batch import History, Row
from tests.engine.compute.obvious_edits import CASES, VOCAB, edited_row, obvious_edits

SETTINGS = settings(derandomize=True, deadline=None, max_examples=200)


def edits(rows: Sequence[Row], vocab: int) -> Edits | None:
    return EditTables().edits(rows, vocab)


def applied(
    logits: Sequence[Sequence[float]], rows: Sequence[Row], tables: EditTables | None = None
) -> list[list[float]]:
    """Applies the edits by the formula at the top of compute/edits.py."""
    found = (tables or EditTables()).edits(rows, VOCAB)
    out = [list(line) for line in logits]
    if found is not None:
        assert len(set(zip(found.rows.tolist(), found.tokens.tolist(), strict=True))) == len(found.rows)
        for row, token, penalty, addend in zip(found.rows, found.tokens, found.penalties, found.addends, strict=True):
            logit = out[row][token]
            out[row][token] = (logit / penalty if logit > 0 else logit * penalty) + addend
    return out


@SETTINGS
@given(CASES)
def test_equal_the_definitions(cases):
    rows = [edited_row(params, [*prompt, *outputs], len(outputs)) for params, prompt, outputs, _ in cases]
    got = applied([logits for *_, logits in cases], rows)
    for (params, prompt, outputs, logits), line in zip(cases, got, strict=True):
        assert line == pytest.approx(obvious_edits(logits, params, [*prompt, *outputs], len(outputs)), abs=1e-9)


def test_rows_that_ask_for_nothing_have_none():
    plain = edited_row(SamplingParams(5, stop_token_ids=(2,)), [1], 0)
    assert edits([plain] * 3, VOCAB) is None
    found = edits([plain, edited_row(SamplingParams(5, logit_bias=((4, 1.0),)), [1], 0), plain], VOCAB)
    assert (found.rows.tolist(), found.tokens.tolist(), found.addends.tolist()) == ([1], [4], [1.0])


def test_stop_tokens_may_come_once_there_are_enough():
    params = SamplingParams(9, min_tokens=2, stop_token_ids=(2, 3))
    assert edits([edited_row(params, [5, 6], 1)], VOCAB).tokens.tolist() == [2, 3]
    assert edits([edited_row(params, [5, 6, 7], 2)], VOCAB) is None


def test_ids_beyond_the_vocabulary_are_passed_over():
    """A prompt may hold ids that are never sampled."""
    found = edits([edited_row(SamplingParams(9, repetition_penalty=2.0, logit_bias=((99, 1.0),)), [1, 50], 0)], VOCAB)
    assert found.tokens.tolist() == [1]
    assert np.array_equal(found.penalties, [2.0])


@SETTINGS
@given(CASES, st.data())
def test_lists_that_are_kept_equal_the_definitions_whoever_joins_leaves_and_comes_back(cases, data):
    """In each step any of the sequences are sampled; each of these then has one more token."""
    texts = [[*prompt, *outputs] for _, prompt, outputs, _ in cases]
    tables = EditTables()
    for _ in range(6):
        chosen = data.draw(st.lists(st.sampled_from(range(len(cases))), unique=True))
        rows, wanted = [], []
        for index in chosen:
            params, prompt, _, logits = cases[index]
            outputs = len(texts[index]) - len(prompt)
            row = edited_row(params, texts[index], outputs)
            history = History(texts[index], len(texts[index])) if row.history else ()
            rows.append(replace(row, id=f"r{index}", history=history))
            wanted.append(obvious_edits(logits, params, texts[index], outputs))
        got = applied([cases[index][3] for index in chosen], rows, tables)
        assert got == [pytest.approx(line, abs=1e-9) for line in wanted]
        assert tables.kept.keys() <= {f"r{index}" for index in chosen}
        for index in chosen:
            texts[index].append(data.draw(st.integers(0, VOCAB + 2)))


@SETTINGS
@given(CASES, st.lists(st.integers(0, VOCAB + 2), max_size=40))
def test_a_list_that_grew_is_bit_for_bit_the_one_that_is_made_anew(cases, more):
    params, prompt, *_ = cases[0]
    text = [*prompt]
    kept = RowEdits.of(edited_row(params, text, 0), VOCAB)
    for token in more:
        kept.take(token)
    anew = RowEdits.of(edited_row(params, [*text, *more], len(more)), VOCAB)

    def listed(found: RowEdits) -> list[tuple[int, float, float]]:
        """Returns what the list does, without what it leaves as it is."""
        columns = (found.tokens[: found.size], found.penalties[: found.size], found.addends[: found.size])
        lines = zip(*(column.tolist() for column in columns), strict=True)
        return sorted(line for line in lines if line[1:] != (1, 0))

    if params.looks_back:
        assert listed(kept) == listed(anew)


def test_a_step_does_not_read_the_text_again():
    class Text(list):
        """Remembers how many of its tokens were read."""

        read = 0

        def __getitem__(self, index):
            found = super().__getitem__(index)
            self.read += len(found) if isinstance(index, slice) else 1
            return found

    text, tables, params = Text(range(1000)), EditTables(), SamplingParams(99, repetition_penalty=2.0)
    for outputs in range(5):
        row = replace(edited_row(params, [1], outputs), history=History(text, len(text)))
        tables.edits([row], 5000)
        text.append(2000 + outputs)
    assert text.read == 1000 + 4


def test_another_request_of_the_same_name_is_counted_anew():
    tables = EditTables()
    for penalty, text in ((2.0, [1, 2]), (3.0, [4, 5, 6])):
        row = edited_row(SamplingParams(9, repetition_penalty=penalty), text, 0)
        assert tables.edits([row], VOCAB).tokens.tolist() == text


def test_a_history_is_a_part_of_the_text_that_never_changes():
    text = [3, 1, 4]
    history = History(text, 3)
    text += [1, 5]
    assert list(history) == [3, 1, 4] == history[:]
    assert (len(history), history[-1], history[1:], history[-2:]) == (3, 4, [1, 4], [1, 4])
    with pytest.raises(IndexError):
        history[3]
