"""Checks bfloat16 in kernels: it rounds to nearest even, products are float32, and other arithmetic is refused."""

import pytest
import torch
import triton
import triton.language as tl


@triton.jit
def convert(source, target, size: tl.constexpr):
    at = tl.arange(0, size)
    tl.store(target + at, tl.load(source + at).to(target.dtype.element_ty))


@triton.jit
def multiply(a, b, product, size: tl.constexpr):
    at = tl.arange(0, size)
    grid = at[:, None] * size + at[None, :]
    tl.store(product + grid, tl.dot(tl.load(a + grid), tl.load(b + grid)))


@triton.jit
def square(source, target, size: tl.constexpr):
    at = tl.arange(0, size)
    tl.store(target + at, tl.load(source + at) * tl.load(source + at))


@triton.jit
def total(source, target, size: tl.constexpr):
    tl.store(target, tl.sum(tl.load(source + tl.arange(0, size)), axis=0))


def converted(source: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    target = torch.empty(len(source), dtype=dtype, device=source.device)
    convert[(1,)](source, target, size=len(source))
    return target


def test_float32_rounds_to_nearest_even(device: torch.device) -> None:
    ties = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8, 3.4e38, float("inf"), float("-inf"), 1e-40, 0.0])
    source = torch.cat([ties, torch.randn(1016, generator=torch.Generator().manual_seed(0))]).to(device)
    assert torch.equal(converted(source, torch.bfloat16), source.bfloat16())


def test_a_nan_stays_one(device: torch.device) -> None:
    source = torch.full((16,), float("nan"), device=device)
    assert converted(converted(source, torch.bfloat16), torch.float32).isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int32])
def test_bfloat16_converts_to_others(dtype: torch.dtype, device: torch.device) -> None:
    source = torch.linspace(-300, 300, 256, device=device).bfloat16()
    assert torch.equal(converted(source, dtype), source.to(dtype))


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.float16])
def test_others_convert_to_bfloat16(dtype: torch.dtype, device: torch.device) -> None:
    source = torch.arange(128, device=device).to(dtype)
    assert torch.equal(converted(source, torch.bfloat16), source.bfloat16())


def test_e4m3_converts_to_bfloat16(device: torch.device) -> None:
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 9):
        pytest.skip("the device has no fp8")
    bits = torch.arange(256, dtype=torch.uint8, device=device)
    numbers = bits.where((bits & 0x7F) != 0x7F, 0).view(torch.float8_e4m3fn)  # without the NaNs
    assert torch.equal(converted(numbers, torch.bfloat16), numbers.bfloat16())


def test_products_of_matrices_are_in_float32(device: torch.device) -> None:
    a, b = torch.randn(2, 32, 32, generator=torch.Generator().manual_seed(1)).to(device).bfloat16()
    product = torch.full((32, 32), float("nan"), device=device)
    multiply[(1,)](a, b, product, size=32)
    torch.testing.assert_close(product.double(), a.double() @ b.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kernel", [square, total])
def test_computing_in_bfloat16_is_refused(kernel: triton.JITFunction, device: torch.device) -> None:
    if device.type == "cuda":
        pytest.skip("the interpreter's own")
    source = torch.ones(16, dtype=torch.bfloat16)
    with pytest.raises(Exception, match="convert to float32"):
        kernel[(1,)](source, torch.empty(16), size=16)
