"""Compares drawing on a CPU with the reference that sorts everything, and the two ways to rank."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.model.ops.sampling import NOISE, _invert, _ranked_by_keys, _ranked_by_torch, draw, draw_reference

SETTINGS = settings(derandomize=True, deadline=None, max_examples=100)
INF = float("inf")
CONTROLS = st.tuples(
    st.floats(0, 1, exclude_max=True),
    st.sampled_from([0.0, 1e-4, 0.3, 1.0, 4.0]),
    st.sampled_from([0, 1, 2, 40, 300, 10_000]),
    st.sampled_from([0.0, 0.1, 0.5, 0.9, 0.999, 1.0]),
    st.sampled_from([0.0, 1e-4, 0.01, 0.2, 1.0]),
)


def nearby(controls: torch.Tensor, nudge: float, top_p: float) -> torch.Tensor:
    """Returns the controls with noise and top_p a little away."""
    moved = controls.clone()
    moved[:, NOISE] = (moved[:, NOISE] + nudge).clamp(0, 1 - 2**-53)
    moved[:, 3] *= torch.where(moved[:, 3] < 1, 1 + top_p, 1)
    return moved


@SETTINGS
@given(
    st.lists(CONTROLS, min_size=1, max_size=8),
    st.sampled_from([1, 5, 256, 257, 700, 4500]),
    st.sampled_from([0.0, 0.2, 3.0]),
    st.booleans(),
    st.integers(0, 2**32),
)
def test_equals_the_reference(controls, vocab, spread, ties, generator_seed):
    """A token is right if controls within float32's rounding give it."""
    logits = torch.randn(len(controls), vocab, generator=torch.Generator().manual_seed(generator_seed)) * spread
    logits = (logits * 2).round() / 2 if ties else logits
    wanted = torch.tensor(controls, dtype=torch.float64)
    moved = [nearby(wanted, noise, top_p) for noise in (0, -2e-6, 2e-6) for top_p in (0, -2e-6, 2e-6)]
    allowed = torch.stack([draw_reference(logits, each) for each in moved])  # [9, R]
    assert (allowed == draw(logits, wanted)).any(0).all()


@pytest.mark.parametrize("choose", [draw, draw_reference])
def test_rows_without_a_finite_maximum_have_no_token(choose):
    logits = torch.tensor([[0.0, float("nan"), 1.0], [INF, 0.0, 1.0], [-INF] * 3, [0.0, 40.0, -INF]])
    for controls in ([0.5, 0.0, 0, 1, 0], [0.5, 1.0, 0, 1, 0], [0.5, 1.0, 2, 0.9, 0.1]):
        wanted = torch.tensor([controls] * 4, dtype=torch.float64)
        assert choose(logits, wanted).tolist() == [-1, -1, -1, 1]


@pytest.mark.parametrize("choose", [draw, draw_reference])
def test_what_is_kept_is_drawn_in_the_order_of_the_vocabulary(choose):
    """More noise never gives an earlier id, whichever token is the most likely."""
    logits = torch.randn(1, 3000, generator=torch.Generator().manual_seed(1)).expand(500, -1)
    controls = torch.tensor([[0.0, 1.0, 400, 0.95, 0.01]] * 500, dtype=torch.float64)
    controls[:, NOISE] = torch.arange(500) / 500
    drawn = choose(logits, controls)
    assert (drawn.diff() >= 0).all()
    assert len(drawn.unique()) > 100


SCORES = st.sampled_from([0.0, -0.0, -1e-40, -0.5, -0.5000001, -3.0, -3e38, -INF]) | st.floats(-9, 0, width=32)


@SETTINGS
@given(st.lists(SCORES, min_size=1, max_size=60), st.integers(0, 60), st.integers(1, 40))
def test_keys_rank_as_torch_does(values, count, repeats):
    """Many scores are equal here, since the values are repeated."""
    scores = torch.tensor([values * repeats, values[::-1] * repeats], dtype=torch.float32)
    count = min(count, scores.shape[-1])
    ours, theirs = _ranked_by_keys(scores, count), _ranked_by_torch(scores, count)
    for n in range(2):
        assert ours[0][n].tolist() == theirs[0][n].tolist()
        before = theirs[0][n] > theirs[0][n][-1:] if count < scores.shape[-1] else slice(None)
        assert ours[1][n][before].tolist() == theirs[1][n][before].tolist()  # among the last ties, torch takes any


def test_keys_rank_rows_of_no_numbers_too():
    scores = torch.full((2, 900), float("nan"))
    scores[1, ::2] = -1.0
    assert _ranked_by_keys(scores, 256)[1].shape == (2, 256)


@pytest.mark.parametrize(("share", "column"), [(-1e-17, 1), (0.0, 1), (2.0, 1), (2.5, 3), (5.0, 3), (5.1, 3)])
def test_the_inverse_never_lands_on_nothing(share, column):
    """Rounding may put the share a little outside of the total."""
    weights = torch.tensor([[0.0, 2.0 + 1e-9, 0.0, 3.0, 0.0]], dtype=torch.float64)
    assert _invert(weights, torch.tensor([[share]], dtype=torch.float64)) == column
