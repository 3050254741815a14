"""Compares linear with its reference, for every weight type."""

from dataclasses import replace

import pytest
import torch

from octavo.model.ops.linear import linear, linear_reference, quantise_activations
from octavo.model.weights.fp16 import Fp16Weight
from octavo.model.weights.kinds import INT4, INT8, Kind
from octavo.model.weights.tiles import TiledWeight
from tests.model.marks import needs_fbgemm

SHAPES = [(1, 16, 16), (1, 33, 7), (5, 48, 20), (6, 8, 64), (70, 31, 129)]  # rows, in, out


@pytest.mark.parametrize(("rows", "columns", "out"), SHAPES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_dense(rows: int, columns: int, out: int, dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(rows, columns).to(dtype), torch.randn(out, columns).to(dtype)
    actual = linear(x, weight)
    assert actual.dtype == dtype
    torch.testing.assert_close(actual, linear_reference(x, weight), rtol=tolerance, atol=tolerance * columns**0.5)


@needs_fbgemm
@pytest.mark.parametrize(("rows", "columns", "out"), SHAPES)
def test_packed(rows: int, columns: int, out: int) -> None:
    torch.manual_seed(0)
    x, dense = torch.randn(rows, columns), torch.randn(out, columns)
    weight = Fp16Weight.pack(dense)
    actual = linear(x, weight)
    torch.testing.assert_close(actual, linear_reference(x, weight), rtol=1e-5, atol=1e-5 * columns**0.5)
    torch.testing.assert_close(actual, linear_reference(x, dense), rtol=1e-2, atol=1e-3 * columns**0.5)


@needs_fbgemm
def test_rows_that_are_not_contiguous() -> None:
    torch.manual_seed(0)
    weight = Fp16Weight.pack(torch.randn(24, 8))
    x = torch.randn(5, 16)[:, :8]
    torch.testing.assert_close(linear(x, weight), linear_reference(x, weight))


quantised = pytest.mark.parametrize("kind", [INT8, INT4])


@quantised
@pytest.mark.parametrize(("rows", "columns", "out"), SHAPES)
def test_tiles_without_kernels_is_exact_in_the_activations(kind: Kind, rows: int, columns: int, out: int) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(rows, columns), TiledWeight.pack(kind, torch.randn(out, columns))
    torch.testing.assert_close(linear(x, weight), linear_reference(x, weight.dense()), rtol=1e-5, atol=1e-4)


@quantised
@pytest.mark.parametrize(("rows", "columns", "out"), SHAPES)
def test_the_tiled_reference_rounds_activations_and_nothing_else(kind: Kind, rows: int, columns: int, out: int) -> None:
    torch.manual_seed(0)
    weight = TiledWeight.pack(kind, torch.randn(out, columns))
    x = torch.randint(-127, 128, (rows, columns)).float() * 2**-9
    x[:, ::32] = 127 * 2**-9  # then every scale is 2^-9, and every activation a whole number of it
    torch.testing.assert_close(linear_reference(x, weight), linear_reference(x, weight.dense()), rtol=1e-6, atol=1e-6)
    x = torch.randn(rows, columns)
    rounded = (linear_reference(x, weight) - linear_reference(x, weight.dense())).abs()
    assert (rounded <= 0.5 * x.abs().max() / 127 * weight.dense().abs().sum(-1) + 1e-6).all()


def test_activations_are_taken_in_the_order_of_the_weight() -> None:
    torch.manual_seed(0)
    plain, x = TiledWeight.pack(INT8, torch.randn(20, 70), terms=2), torch.randn(3, 70)
    ordered = replace(plain, order=torch.randperm(70, dtype=torch.int32))
    assert torch.equal(linear_reference(x, ordered), linear_reference(x[:, ordered.order], plain))
    torch.testing.assert_close(linear(x, ordered), linear_reference(x, ordered), rtol=1e-3, atol=1e-3)


def test_activations_are_quantised_per_token_and_group() -> None:
    x = torch.zeros(3, 70)
    x[0, 0], x[0, 1], x[0, 32], x[1, 69] = 254.0, -3.0, 0.5, -1e-20  # 1.5 steps round to 2, half to even
    quants, scales = quantise_activations(x, groups=3)
    assert scales.tolist() == torch.tensor([[2.0, 0.5 / 127, 0], [0, 0, 1e-20 / 127], [0, 0, 0]]).tolist()
    assert quants[0, 0, :3].tolist() == [127, -2, 0] and quants[0, 1, 0] == 127 and quants[1, 2, 5] == -127
    assert not quants[2].any()
    x[0, 0] = 1e30  # an outlier is the business of its own group alone
    again, _ = quantise_activations(x, groups=3)
    assert torch.equal(again[0, 1:], quants[0, 1:]) and torch.equal(again[1:], quants[1:])
