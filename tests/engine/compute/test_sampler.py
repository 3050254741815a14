"""Compares the sampler with an obvious one in plain Python and with the distributions it promises; tests edge cases."""

import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.engine.api import SamplingParams
from octavo.engine.compute.edits import EditTables
from octavo.engine.compute.noise import uniforms
from octavo.engine.compute.sampler import _edited, _forbidden, _logprobs, _unpacked, _within, draw, score
from octavo.engine.schedule.batch import Row, Sample
from octavo.model.ops import sampling
from octavo.model.ops.sampling import CANDIDATES, draw_reference
from tests.engine.compute.obvious_edits import CASES, edited_row, obvious_edits

SETTINGS = settings(derandomize=True, deadline=None, max_examples=100)
INF = float("inf")


def row(output: int = 0, **params) -> Row:
    return Row("r", 0, (1,), (0,), SamplingParams(1, **params), output)


def sample(logits, rows, vocab, allowed=None, choose=sampling.draw) -> list[Sample]:
    """Draws, and waits for the samples."""
    return draw(logits, rows, vocab, allowed, choose).samples()


def tokens(logits: torch.Tensor, rows: list[Row], vocab: int | None = None) -> list[int | None]:
    return [each.token for each in sample(logits, rows, vocab or logits.shape[-1])]


def obvious(logits: list[float], params: SamplingParams, noise: float) -> int:
    """Returns what the sampler must choose for one row, computed step by step in Python's floats."""
    top = max(logits)
    if params.temperature < 1e-5:
        return logits.index(top)
    weights = [math.exp((logit - top) / params.temperature) for logit in logits]
    order = list(range(len(logits)))
    if params.top_k or params.top_p < 1 or params.min_p:
        order.sort(key=lambda token: (-logits[token], token))
        order = order[: params.top_k or None]
        mass, before, kept = sum(weights[token] for token in order), 0.0, []
        for token in order:
            inside = params.top_p >= 1 or before < params.top_p * mass
            likely = weights[token] >= params.min_p * weights[order[0]]
            if not kept or (inside and likely):
                kept.append(token)
            before += weights[token]
        order = sorted(kept)
    share = noise * sum(weights[token] for token in order)
    for token in order:
        share -= weights[token]
        if share < 0:
            return token
    return order[-1]


def is_acceptable(token: int | None, logits: list[float], each: Row) -> bool:
    """Returns whether the obvious sampler chooses the token, or would choose it but for rounding in float32."""
    params = each.params
    (noise,) = uniforms([params.seed], [params.choice], [each.output or 0])
    if token == obvious(logits, params, noise):
        return True
    for nudge, top_p, min_p in product((-2e-6, 0, 2e-6), repeat=3):
        nudged = replace(
            params,
            top_p=params.top_p if params.top_p == 1 else params.top_p * (1 + top_p),
            min_p=params.min_p * (1 + min_p),
        )
        if token == obvious(logits, nudged, min(max(noise + nudge, 0.0), 1 - 1e-16)):
            return True
    return False


PARAMS = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 0.3, 0.7, 1.0, 1.5, 4.0]),
        "top_k": st.sampled_from([0, 1, 2, 40, 300, 10_000]),
        "top_p": st.sampled_from([0.0, 0.1, 0.5, 0.9, 0.999, 1.0]),
        "min_p": st.sampled_from([0.0, 0.01, 0.2, 1.0]),
        "seed": st.integers(0, 2**64 - 1),
        "choice": st.integers(0, 3),
    }
)


@SETTINGS
@given(
    st.lists(st.tuples(PARAMS, st.integers(0, 1000)), min_size=1, max_size=5),
    st.sampled_from([5, 256, 257, 700, 4500]),
    st.floats(0.1, 8),
    st.integers(0, 2**32),
)
def test_equals_the_obvious_sampler(cases, vocab, spread, generator_seed):
    logits = torch.randn(len(cases), vocab, generator=torch.Generator().manual_seed(generator_seed)) * spread
    rows = [row(output, **params) for params, output in cases]
    for values, each, got in zip(logits.tolist(), rows, tokens(logits, rows), strict=True):
        assert is_acceptable(got, values, each)


@SETTINGS
@given(st.lists(st.tuples(PARAMS, st.integers(0, 1000)), min_size=2, max_size=6), st.integers(0, 2**32))
def test_a_row_does_not_depend_on_its_neighbours(cases, generator_seed):
    logits = torch.randn(len(cases), 600, generator=torch.Generator().manual_seed(generator_seed)) * 3
    rows = [row(output, **params) for params, output in cases]
    alone = [tokens(logits[n : n + 1], [each])[0] for n, each in enumerate(rows)]
    assert tokens(logits, rows) == alone


@pytest.mark.parametrize("vocab", [5, *CANDIDATES, *(count + 1 for count in CANDIDATES)])
def test_equal_logits_are_ranked_by_id_however_many_are_looked_at(vocab):
    """Ties reach beyond the first candidates, so the row is settled only when all of it is sorted."""
    logits = torch.zeros(64, vocab)
    rows = [row(n, top_k=3) for n in range(64)]
    assert set(tokens(logits, rows)) == {0, 1, 2}


def test_top_p_counts_all_of_a_top_k_that_lies_beyond_the_first_candidates():
    logits = torch.randn(1, 700, generator=torch.Generator().manual_seed(0)).expand(200, -1) / 8
    rows = [row(n, top_k=CANDIDATES[0] + 44, top_p=0.1) for n in range(200)]
    for each, got in zip(rows, tokens(logits, rows), strict=True):
        assert is_acceptable(got, logits[0].tolist(), each)


def chi_square(counts: list[int], probabilities: list[float]) -> float:
    total = sum(counts)
    return sum((count - total * p) ** 2 / (total * p) for count, p in zip(counts, probabilities, strict=True) if p)


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({}, [0.4, 0.3, 0.2, 0.1]),
        ({"temperature": 0.5}, [16 / 30, 9 / 30, 4 / 30, 1 / 30]),
        ({"top_k": 2}, [4 / 7, 3 / 7, 0, 0]),
        ({"top_p": 0.75}, [4 / 9, 3 / 9, 2 / 9, 0]),
        ({"min_p": 0.6}, [4 / 7, 3 / 7, 0, 0]),
        ({"top_k": 3, "top_p": 0.7}, [4 / 7, 3 / 7, 0, 0]),
    ],
)
def test_tokens_are_drawn_with_their_probabilities(params, expected):
    draws = 20_000
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log().expand(draws, 4)
    drawn = tokens(logits, [row(n, seed=11, **params) for n in range(draws)])
    counts = [drawn.count(token) for token in range(4)]
    assert [bool(count) for count in counts] == [bool(p) for p in expected]
    assert chi_square(counts, expected) < 16.3  # 3 degrees of freedom, p = 0.001


def test_a_large_vocabulary_is_drawn_from_evenly():
    draws, vocab = 20_000, 1000
    drawn = tokens(torch.zeros(1, vocab).expand(draws, vocab), [row(n, seed=5) for n in range(draws)])
    counts = torch.bincount(torch.tensor(drawn), minlength=vocab).view(20, -1).sum(-1).tolist()
    assert chi_square(counts, [1 / 20] * 20) < 43.8


def test_seed_choice_and_position_change_the_draw_and_nothing_else_does():
    logits = torch.zeros(1, 10_000).expand(5, -1)
    drawn = tokens(logits, [row(0, seed=1), row(0, seed=2), row(1, seed=1), row(0, seed=1, choice=1), row(0, seed=1)])
    assert len(set(drawn)) == 4
    assert drawn[0] == drawn[4]


@SETTINGS
@given(CASES)
def test_chooses_by_the_edited_logits(cases):
    """This holds for greedy and drawn tokens. Log-probabilities stay those of the model."""
    logits = torch.tensor([values for *_, values in cases])
    rows = [
        replace(
            edited_row(params, [*prompt, *outputs], len(outputs)),
            params=replace(params, temperature=index % 2, logprobs=1),
        )
        for index, (params, prompt, outputs, _) in enumerate(cases)
    ]
    untouched = logits.clone()
    samples = sample(logits, rows, logits.shape[-1])
    assert torch.equal(logits, untouched)
    for each, (params, prompt, outputs, values), got in zip(rows, cases, samples, strict=True):
        wanted = obvious_edits(values, params, [*prompt, *outputs], len(outputs))
        if each.params.temperature:
            assert is_acceptable(got.token, wanted, each)
        else:
            assert wanted[got.token] == pytest.approx(max(wanted), abs=1e-5)
        assert got.logprobs.logprob == pytest.approx(torch.tensor(values).log_softmax(-1)[got.token].item(), abs=1e-5)


def test_a_row_that_may_sample_nothing_fails_alone():
    banned = row(stop_token_ids=(0, 1, 2), min_tokens=1)
    assert tokens(torch.zeros(2, 3), [banned, row(temperature=0.0)]) == [None, 0]


def test_greedy_takes_the_most_likely():
    logits = torch.tensor([[0.0, 2.0, 1.0], [5.0, 2.0, 1.0]])
    assert tokens(logits, [row(temperature=0.0), row(temperature=1e-9, top_p=0.5)]) == [1, 0]


def test_ids_beyond_the_tokenizer_are_never_sampled():
    logits = torch.tensor([[0.0, 1.0, 9.0, 9.0]] * 3)
    rows = [row(temperature=0.0, logprobs=4), row(top_p=0.99), row()]
    first, *_ = sample(logits, rows, 2)
    assert first.token == 1
    assert [token for token, _ in first.logprobs.top] == [1, 0]
    assert all(token in (0, 1) for token in tokens(logits, rows, 2))


@pytest.mark.parametrize("bad", [[math.nan, 1.0, 2.0], [INF, 1.0, 2.0], [-INF] * 3])
@pytest.mark.parametrize("params", [{"temperature": 0.0}, {}, {"top_p": 0.9}, {"top_k": 2, "logprobs": 2}])
def test_a_row_that_is_not_a_number_fails_alone(bad, params):
    logits = torch.tensor([bad, [0.0, 30.0, 0.0]])
    assert tokens(logits, [row(**params), row(**params)]) == [None, 1]


@pytest.mark.parametrize("params", [{}, {"top_k": 3}, {"top_p": 0.99}, {"min_p": 0.01}])
def test_tokens_of_no_weight_are_never_drawn(params):
    logits = torch.full((500, 600), -INF)
    logits[:, 300] = logits[:, 17] = 0.0
    assert set(tokens(logits, [row(n, **params) for n in range(500)])) == {17, 300}


@pytest.mark.parametrize("temperature", [1e-5, 1e-4, 1e30])
def test_extreme_temperatures_are_numbers(temperature):
    logits = torch.tensor([[1e4, -1e4, 0.0]])
    (token,) = tokens(logits, [row(temperature=temperature, seed=3)])
    assert token in ((0,) if temperature < 1 else (0, 1, 2))


def test_logprobs_are_of_the_model_before_temperature_and_filters():
    probabilities = torch.tensor([[0.1, 0.6, 0.3]])
    logits = probabilities.log() + 7
    plain, none, many = sample(
        logits.expand(3, 3),
        [row(temperature=0.01, top_k=1, logprobs=0), row(), row(temperature=0.0, logprobs=9)],
        3,
    )
    assert plain.logprobs.logprob == pytest.approx(math.log(0.6), abs=1e-5)
    assert plain.logprobs.top == ()
    assert none.logprobs is None
    assert [token for token, _ in many.logprobs.top] == [1, 2, 0]
    assert [value for _, value in many.logprobs.top] == pytest.approx([math.log(p) for p in (0.6, 0.3, 0.1)], abs=1e-5)


def test_a_logprob_may_be_minus_infinity():
    (found,) = sample(torch.tensor([[0.0, -INF]]), [row(temperature=0.0, logprobs=2)], 2)
    assert found == Sample(0, found.logprobs)
    assert found.logprobs.top == ((0, 0.0), (1, -INF))


@SETTINGS
@given(st.integers(0, 2**32), st.integers(0, 6))
def test_scores_are_log_probabilities_and_ranks(generator_seed, count):
    """Equal logits rank by id; an id that is never sampled has no probability."""
    logits = torch.randint(0, 4, (7, 5), generator=torch.Generator().manual_seed(generator_seed)).float()
    targets = [0, 1, 2, 3, 4, 5, 99]
    for values, target, found in zip(logits.tolist(), targets, score(logits, targets, count), strict=True):
        total = math.log(sum(map(math.exp, values)))
        order = sorted(range(5), key=lambda token: (-values[token], token))
        assert found.logprob == pytest.approx(values[target] - total if target < 5 else -INF, abs=1e-5)
        assert found.rank == (order.index(target) + 1 if target < 5 else 6)
        assert [logprob for _, logprob in found.top] == pytest.approx(
            [values[t] - total for t in order[:count]], abs=1e-5
        )
        assert all(logprob == pytest.approx(values[token] - total, abs=1e-5) for token, logprob in found.top)


def test_nothing_waits_for_the_device():
    """A tensor on the device meta has no values, so code that asks for one fails."""
    logits = torch.empty(3, 40, device="meta")
    rows = [row(n, logprobs=3, min_tokens=9, stop_token_ids=(n, 50), logit_bias=((7, 1.0),)) for n in range(3)]
    edited = _edited(logits, rows, 40, EditTables())
    assert _within(edited, logits, np.ones((3, 6), np.uint8), 40).shape == (3, 40)
    tokens = draw_reference(edited, torch.empty(3, 5, dtype=torch.float64, device="meta"))
    assert tokens.shape == (3,)
    assert [each.shape for each in _logprobs(logits, tokens, ((0, 2), (2, 5)))] == [(2,), (2, 5), (2, 5)]


@pytest.mark.parametrize("size", [1, 3, 4])
def test_masks_are_unpacked_on_the_device_as_on_the_host(size):
    """There may be more bits than columns, or fewer."""
    allowed = np.random.default_rng(0).integers(0, 256, (5, size), np.uint8)
    assert torch.equal(_unpacked(torch.from_numpy(allowed), 20), ~_forbidden(allowed, torch.zeros(5, 20)))


def test_tokens_stay_on_the_device_until_somebody_asks():
    logits = torch.tensor([[0.0, 3.0], [math.nan, 0.0], [5.0, 0.0]])
    drawn = draw(logits, [row(temperature=0.0)] * 3, 2, None, sampling.draw)
    assert drawn.tokens.tolist() == [1, -1, 0]
    assert [each.token for each in drawn.samples()] == [1, None, 0]


def test_the_operation_that_draws_is_the_callers():
    def second(logits: torch.Tensor, controls: torch.Tensor) -> torch.Tensor:
        assert controls.shape == (len(logits), 5)
        return logits.topk(2).indices[:, 1]

    assert [each.token for each in sample(torch.tensor([[0.0, 3.0, 2.0]]), [row()], 3, choose=second)] == [2]


@pytest.mark.parametrize("params", [{"temperature": 0.0}, {}, {"top_k": 2}, {"top_p": 0.9}])
def test_what_a_grammar_forbids_is_never_chosen(params):
    logits = torch.arange(20.0).expand(50, 20)
    allowed = np.full((50, 4), 0xFF, np.uint8)  # 32 ids, of which the last 12 are padding
    allowed[1:] = [0b00000110, 0, 0, 0xFF]
    rows = [row(n, logprobs=1, **params) for n in range(50)]
    free, *bound = sample(logits, rows, 20, allowed)
    assert free.token is not None and free.token > 2
    assert {each.token for each in bound} <= {1, 2}
    assert all(each.logprobs.top[0][0] == 19 for each in bound)


def test_a_ban_that_leaves_a_grammar_nothing_gives_way():
    bound = row(0, min_tokens=5, stop_token_ids=(2,))
    allowed = np.array([[0b100]], np.uint8)
    assert tokens(torch.zeros(1, 4), [bound]) != [2]
    assert [each.token for each in sample(torch.zeros(1, 4), [bound], 4, allowed)] == [2]
