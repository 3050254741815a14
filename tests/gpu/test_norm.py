"""Compares RMSNorm, with the addition before it, with its reference and with the model's own."""

import pytest
import torch

from octavo.model.kernels.gpu.norm import Delta, add_norm, add_norm_reference
from octavo.model.layers import RMSNorm

EPS = 1e-5
# Two last places of each dtype: where the reference's mean, in float64, rounds a value the other way, one before the
# weight, and half of one on either side behind it.
TOLERANCE = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
each_dtype = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)


def random_rows(tokens: int, hidden: int, dtype: torch.dtype, device: torch.device) -> list[torch.Tensor]:
    """Returns x, delta and weight."""
    torch.manual_seed(tokens + hidden)
    x, delta = torch.randn(2, tokens, hidden) * 3
    return [tensor.to(device, dtype) for tensor in (x, delta, 1 + 0.1 * torch.randn(hidden))]


@each_dtype
@pytest.mark.parametrize(("tokens", "hidden"), [(1, 1), (1, 64), (5, 300), (2, 4096), (3, 6144)])
def test_against_the_reference(device: torch.device, dtype: torch.dtype, tokens: int, hidden: int) -> None:
    x, delta, weight = random_rows(tokens, hidden, dtype, device)
    total, normed = add_norm(x, Delta(delta), weight, EPS)
    expected_total, expected = add_norm_reference(x, Delta(delta), weight, EPS)
    assert total.equal(expected_total)
    torch.testing.assert_close(normed, expected, rtol=TOLERANCE[dtype], atol=1e-6)


@each_dtype
@pytest.mark.parametrize("factor", [1.0, 0.22])
def test_a_delta_has_a_bias_and_a_factor(device: torch.device, dtype: torch.dtype, factor: float) -> None:
    x, rows, weight = random_rows(3, 300, dtype, device)
    delta = Delta(rows, torch.randn(300).to(device, dtype), factor)
    total, normed = add_norm(x, delta, weight, EPS)
    assert delta.bias is not None
    plain = x.double() + factor * (rows.double() + delta.bias.double())
    torch.testing.assert_close(total.double(), plain, rtol=TOLERANCE[dtype] / 2, atol=1e-6)
    torch.testing.assert_close(
        normed, add_norm_reference(total, None, weight, EPS)[1], rtol=TOLERANCE[dtype], atol=1e-6
    )


@each_dtype
def test_as_the_models_own(device: torch.device, dtype: torch.dtype) -> None:
    x, _, weight = random_rows(9, 300, dtype, device)
    total, normed = add_norm(x, None, weight, EPS)
    assert total is x
    torch.testing.assert_close(normed, RMSNorm.create(weight, EPS)(x), rtol=TOLERANCE[dtype], atol=1e-6)


def test_a_row_of_zeros_is_held_up_by_epsilon(device: torch.device) -> None:
    x = torch.zeros(2, 64, device=device)
    assert add_norm(x, Delta(x.clone()), torch.ones(64, device=device), EPS)[1].equal(x)


def test_a_row_is_the_same_in_any_company(device: torch.device) -> None:
    x, delta, weight = random_rows(6, 300, torch.bfloat16, device)
    together = add_norm(x, Delta(delta), weight, EPS)
    for row in range(6):
        # Copies begin where every tensor does: a kernel for other addresses may add up in another order.
        alone = add_norm(x[row : row + 1].clone(), Delta(delta[row : row + 1].clone()), weight, EPS)
        assert all(one[0].equal(all_rows[row]) for one, all_rows in zip(alone, together, strict=True))
