"""linear against its reference, for every weight type."""

import pytest
import torch

from model.ops.linear import linear, linear_reference
from model.quantization import Fp16Weight, fp16_works

SHAPES = [(1, 16, 16), (1, 33, 7), (5, 48, 20), (6, 8, 64), (70, 31, 129)]  # rows, in, out


@pytest.mark.parametrize(("rows", "columns", "out"), SHAPES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_dense(rows: int, columns: int, out: int, dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(rows, columns).to(dtype), torch.randn(out, columns).to(dtype)
    actual = linear(x, weight)
    assert actual.dtype == dtype
    torch.testing.assert_close(actual, linear_reference(x, weight), rtol=tolerance, atol=tolerance * columns**0.5)


@pytest.mark.skipif(not fp16_works(), reason="needs FBGEMM on x86")
@pytest.mark.parametrize(("rows", "columns", "out"), SHAPES)
def test_packed(rows: int, columns: int, out: int) -> None:
    torch.manual_seed(0)
    x, dense = torch.randn(rows, columns), torch.randn(out, columns)
    weight = Fp16Weight.pack(dense)
    actual = linear(x, weight)
    torch.testing.assert_close(actual, linear_reference(x, weight), rtol=1e-5, atol=1e-5 * columns**0.5)
    torch.testing.assert_close(actual, linear_reference(x, dense), rtol=1e-2, atol=1e-3 * columns**0.5)


@pytest.mark.skipif(not fp16_works(), reason="needs FBGEMM on x86")
def test_rows_that_are_not_contiguous() -> None:
    torch.manual_seed(0)
    weight = Fp16Weight.pack(torch.randn(24, 8))
    x = torch.randn(5, 16)[:, :8]
    torch.testing.assert_close(linear(x, weight), linear_reference(x, weight))
