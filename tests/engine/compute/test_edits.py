"""Compares edits with the obvious way to make them."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings

from octavo.engine.api import SamplingParams
from octavo.engine.compute.edits import edits
from octavo.engine.schedule.batch import Row
from tests.engine.compute.obvious_edits import CASES, VOCAB, edited_row, obvious_edits

SETTINGS = settings(derandomize=True, deadline=None, max_examples=200)


def applied(logits: Sequence[Sequence[float]], rows: Sequence[Row]) -> list[list[float]]:
    """Applies the edits by the formula at the top of compute/edits.py."""
    found = edits(rows, VOCAB)
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
