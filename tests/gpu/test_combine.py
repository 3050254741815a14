"""Compares the sum of the experts' partial sums with its reference; it is the same bit for bit in any company."""

import pytest
import torch

from octavo.model.kernels.gpu.combine import Biases, combine, combine_reference
from octavo.model.kernels.gpu.norm import add_norm

EPS = 1e-5
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
each_dtype = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)


def random_outputs(
    tokens: int, top_k: int, splits: int, hidden: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns partials, weights and x."""
    torch.manual_seed(tokens + hidden)
    partials = torch.randn(splits, tokens * top_k, hidden, device=device)
    return partials, torch.rand(tokens, top_k, device=device).softmax(-1), torch.randn(tokens, hidden, device=device)


@each_dtype
@pytest.mark.parametrize("top_k", [1, 2, 8])
@pytest.mark.parametrize("splits", [1, 3, 8])
@pytest.mark.parametrize(("tokens", "hidden"), [(1, 64), (5, 300)])
def test_against_the_reference(
    device: torch.device, dtype: torch.dtype, tokens: int, top_k: int, splits: int, hidden: int
) -> None:
    partials, weights, x = random_outputs(tokens, top_k, splits, hidden, device)
    norm_weight = (1 + 0.1 * torch.randn(hidden, device=device)).to(dtype)
    total, normed = combine(partials, weights, x.to(dtype), norm_weight, EPS)
    expected_total, expected = combine_reference(partials, weights, x.to(dtype), norm_weight, EPS)
    torch.testing.assert_close(total, expected_total, rtol=TOLERANCE[dtype], atol=1e-5)
    torch.testing.assert_close(normed, expected, rtol=1.5 * TOLERANCE[dtype], atol=1e-5)  # the sum's place, and two


@each_dtype
@pytest.mark.parametrize("splits", [1, 4])
def test_each_choice_brings_the_bias_of_its_expert(device: torch.device, dtype: torch.dtype, splits: int) -> None:
    partials, weights, x = random_outputs(5, 3, splits, 300, device)
    ids = torch.rand(5, 9, device=device).topk(3).indices.int()
    biases = Biases(ids, torch.randn(9, 300).to(device, dtype))
    ones = torch.ones(300, dtype=dtype, device=device)
    total, normed = combine(partials, weights, x.to(dtype), ones, EPS, biases)
    expected_total, expected = combine_reference(partials, weights, x.to(dtype), ones, EPS, biases)
    torch.testing.assert_close(total, expected_total, rtol=TOLERANCE[dtype], atol=1e-5)
    torch.testing.assert_close(normed, expected, rtol=1.5 * TOLERANCE[dtype], atol=1e-5)
    whole = partials.sum(0).unflatten(0, (5, 3)) + torch.stack([biases.rows[line.long()] for line in ids]).float()
    by_hand = x.to(dtype).float() + (weights[..., None] * whole).sum(1)
    torch.testing.assert_close(total.float(), by_hand, rtol=TOLERANCE[dtype], atol=1e-5)


def test_without_a_norm(device: torch.device) -> None:
    """Combines without a norm, which happens after the last layer, where only some rows are normed."""
    partials, weights, x = random_outputs(3, 2, 2, 64, device)
    total, normed = combine(partials, weights, x, None, EPS)
    assert normed is None
    assert total.equal(combine(partials, weights, x, torch.ones(64, device=device), EPS)[0])


@each_dtype
def test_the_norm_is_the_one_of_its_own_kernel(device: torch.device, dtype: torch.dtype) -> None:
    partials, weights, x = random_outputs(4, 2, 2, 300, device)
    norm_weight = (1 + 0.1 * torch.randn(300, device=device)).to(dtype)
    total, normed = combine(partials, weights, x.to(dtype), norm_weight, EPS)
    assert normed is not None
    torch.testing.assert_close(normed, add_norm(total, None, norm_weight, EPS)[1], rtol=TOLERANCE[dtype], atol=1e-6)


def test_a_dense_layer_adds_its_only_expert(device: torch.device) -> None:
    partials, _, x = random_outputs(4, 1, 1, 64, device)
    assert combine(partials, torch.ones(4, 1, device=device), x, None, EPS)[0].equal(x + partials[0])


def test_a_row_is_the_same_in_any_company(device: torch.device) -> None:
    partials, weights, x = random_outputs(6, 2, 4, 300, device)
    norm_weight = torch.ones(300, dtype=torch.bfloat16, device=device)
    together = combine(partials, weights, x.bfloat16(), norm_weight, EPS)
    for row in range(6):
        rows = slice(row, row + 1)
        own = partials[:, 2 * row : 2 * row + 2].contiguous()
        alone = combine(own, weights[rows], x[rows].bfloat16(), norm_weight, EPS)
        for one, all_rows in zip(alone, together, strict=True):
            assert one is not None and all_rows is not None
            assert one[0].equal(all_rows[row])


def test_what_is_no_number_stays_with_its_row(device: torch.device) -> None:
    partials, weights, x = random_outputs(3, 2, 2, 64, device)
    whole = combine(partials, weights, x, None, EPS)[0]
    partials[:, 2] = float("nan")
    total = combine(partials, weights, x, None, EPS)[0]
    assert total[1].isnan().all()
    assert total[[0, 2]].equal(whole[[0, 2]])
