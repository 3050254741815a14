"""Edits against the obvious way: one logit after the other, as the definitions of the parameters are written."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.engine.api import SamplingParams
from octavo.engine.compute.edits import edits
from octavo.engine.schedule.batch import Row

SETTINGS = settings(derandomize=True, deadline=None, max_examples=200)
VOCAB = 12
INF = float("inf")


def obvious(logits: Sequence[float], params: SamplingParams, text: Sequence[int], output: int) -> list[float]:
    """The logits that the next token is chosen by; `output` tokens at the end of the text were generated."""
    edited = []
    generated = list(text)[len(text) - output :]
    for token, logit in enumerate(logits):
        if token in text:
            logit = logit / params.repetition_penalty if logit > 0 else logit * params.repetition_penalty
        logit -= params.frequency_penalty * generated.count(token)
        logit -= params.presence_penalty * (token in generated)
        logit += dict(params.logit_bias).get(token, 0.0)
        if output < params.min_tokens and token in params.stop_token_ids:
            logit = -INF
        edited.append(logit)
    return edited


def applied(logits: Sequence[Sequence[float]], rows: Sequence[Row]) -> list[list[float]]:
    """By the formula at the top of the module."""
    found = edits(rows, VOCAB)
    out = [list(line) for line in logits]
    if found is not None:
        assert len(set(zip(found.rows.tolist(), found.tokens.tolist(), strict=True))) == len(found.rows)
        for row, token, penalty, addend in zip(found.rows, found.tokens, found.penalties, found.addends, strict=True):
            logit = out[row][token]
            out[row][token] = (logit / penalty if logit > 0 else logit * penalty) + addend
    return out


def row(params: SamplingParams, text: Sequence[int], output: int) -> Row:
    history = tuple(text) if params.looks_back else ()
    return Row("r", 0, tuple(text[-1:]), (0,), params, output, history=history)


TOKENS = st.integers(0, VOCAB - 1)
PARAMS = st.builds(
    SamplingParams,
    max_tokens=st.just(9),
    logit_bias=st.dictionaries(TOKENS, st.floats(-100, 100), max_size=3).map(lambda biases: tuple(biases.items())),
    presence_penalty=st.sampled_from([0.0, -2.0, 0.7]),
    frequency_penalty=st.sampled_from([0.0, -1.0, 2.0]),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.5]),
    min_tokens=st.integers(0, 4),
    stop_token_ids=st.lists(TOKENS, max_size=3, unique=True).map(tuple),
)
CASES = st.lists(
    st.tuples(
        PARAMS,
        st.lists(TOKENS, min_size=1, max_size=5),
        st.lists(TOKENS, max_size=6),
        st.lists(st.floats(-9, 9), min_size=VOCAB, max_size=VOCAB),
    ),
    min_size=1,
    max_size=4,
)


@SETTINGS
@given(CASES)
def test_equal_the_definitions(cases):
    rows = [row(params, [*prompt, *outputs], len(outputs)) for params, prompt, outputs, _ in cases]
    got = applied([logits for *_, logits in cases], rows)
    for (params, prompt, outputs, logits), line in zip(cases, got, strict=True):
        assert line == pytest.approx(obvious(logits, params, [*prompt, *outputs], len(outputs)), abs=1e-9)


def test_rows_that_ask_for_nothing_have_none():
    plain = row(SamplingParams(5, stop_token_ids=(2,)), [1], 0)
    assert edits([plain] * 3, VOCAB) is None
    found = edits([plain, row(SamplingParams(5, logit_bias=((4, 1.0),)), [1], 0), plain], VOCAB)
    assert (found.rows.tolist(), found.tokens.tolist(), found.addends.tolist()) == ([1], [4], [1.0])


def test_stop_tokens_may_come_once_there_are_enough():
    params = SamplingParams(9, min_tokens=2, stop_token_ids=(2, 3))
    assert edits([row(params, [5, 6], 1)], VOCAB).tokens.tolist() == [2, 3]
    assert edits([row(params, [5, 6, 7], 2)], VOCAB) is None


def test_ids_beyond_the_vocabulary_are_passed_over():
    """A prompt may hold ids that are never sampled."""
    found = edits([row(SamplingParams(9, repetition_penalty=2.0, logit_bias=((99, 1.0),)), [1, 50], 0)], VOCAB)
    assert found.tokens.tolist() == [1]
    assert np.array_equal(found.penalties, [2.0])
