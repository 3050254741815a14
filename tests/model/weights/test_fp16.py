"""Tests which matrices fit float16, and what packing makes of one."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.model.weights.fp16 import CHECKED, TOLERANCE, Fp16Weight, fits_fp16
from tests.model.marks import needs_fbgemm


def test_ordinary_weights_fit_float16() -> None:
    torch.manual_seed(0)
    assert fits_fp16(torch.randn(300, 40) * 0.02)
    assert fits_fp16(torch.zeros(4, 4))
    assert fits_fp16(torch.full((4, 4), 65504.0))


def test_large_and_tiny_weights_do_not() -> None:
    torch.manual_seed(0)
    large = torch.randn(30, 40)
    large[3, 3] = -65600
    assert not fits_fp16(large)
    assert not fits_fp16(torch.randn(30, 40) * 1e-6)
    # A few subnormal numbers among ordinary ones lose nothing that matters.
    assert fits_fp16(torch.cat((torch.randn(30, 40), torch.randn(1, 40) * 1e-7)))


def test_a_large_matrix_is_checked_to_its_end() -> None:
    wide = torch.full((3, CHECKED), 2.0**-20)  # subnormal, and exact
    assert fits_fp16(wide)
    wide[2] *= 1.3
    assert not fits_fp16(wide)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(st.floats(-24, 0), st.integers(0, 10))
def test_what_fits_float16_is_what_it_loses(exponent: float, seed: int) -> None:
    dense = torch.randn(30, 40, generator=torch.Generator().manual_seed(seed)) * 2.0**exponent
    lost = (dense - dense.half()).norm() / dense.norm()
    assert fits_fp16(dense) == bool(lost <= TOLERANCE)


@needs_fbgemm
def test_packing_rounds_to_float16_and_nothing_else() -> None:
    torch.manual_seed(0)
    dense = torch.randn(33, 17)
    weight = Fp16Weight.pack(dense)
    assert torch.equal(weight.dense(), dense.half().float())
    assert (weight.shape, weight.nbytes) == ((33, 17), 2 * 48 * 512)
