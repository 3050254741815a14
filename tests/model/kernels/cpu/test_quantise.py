"""Compares quantise.h with TiledWeight.fill, which it must equal to the last bit, on every instruction set."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from octavo.model.kernels.cpu.library import library
from octavo.model.weights.kinds import EVEN4, INT4, INT8, INT8_FINE, Kind
from octavo.model.weights.memory import zeros_on
from octavo.model.weights.tiles import TiledWeight

KERNELS = library()
LEVELS = [] if KERNELS is None else [level for level in KERNELS.levels() if KERNELS.set_level(level)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]

pytestmark = pytest.mark.skipif(KERNELS is None, reason="the C kernels were not built")
each_kind = pytest.mark.parametrize("kind", [INT8, INT8_FINE, INT4, EVEN4], ids=["int8", "fine", "int4", "even4"])


def assert_same(kind: Kind, dense: Tensor, interleaved: bool, cut: int) -> None:
    """Quantises in two pieces on every instruction set; the last set is the best one, which stays in use."""
    assert KERNELS is not None
    expected = TiledWeight.pack(kind, dense, interleaved)
    for level in LEVELS:
        KERNELS.set_level(level)
        weight = TiledWeight.empty(expected.layout, zeros_on(dense.device))
        for rows, first in ((dense[:cut], 0), (dense[cut:], cut)):
            KERNELS.quantise(weight, rows, first)
        assert torch.equal(weight.memory, expected.memory)


@each_kind
@settings(derandomize=True, max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 100)),
    interleaved=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    power=st.integers(-140, 120),
    data=st.data(),
)
def test_the_same_bits(
    kind: Kind,
    shape: tuple[int, int],
    interleaved: bool,
    dtype: torch.dtype,
    power: int,
    data: st.DataObject,
) -> None:
    torch.manual_seed(data.draw(st.integers(0, 99), label="seed"))
    count, columns = 2 * shape[0] if interleaved else shape[0], shape[1]
    power = max(-12, min(power, 8)) if kind == EVEN4 else power  # whose numbers are in float16
    dense = (torch.randn(count, columns) + torch.randn(count, 1)) * 2.0**power
    limits = torch.finfo(dtype)
    dense = dense.clamp(limits.min, limits.max).to(dtype)
    assert_same(kind, dense, interleaved, data.draw(st.integers(0, count), label="first piece"))


@each_kind
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_bits_of_strange_weights(kind: Kind, dtype: torch.dtype) -> None:
    """Zeros of both signs, constants, ties, one outlier, subnormal scales, the largest magnitudes."""
    torch.manual_seed(0)
    groups = [
        torch.zeros(32),
        -torch.zeros(32),
        torch.full((32,), -0.3),
        torch.arange(32) / 2 - 8,
        torch.eye(32)[5] * 65000,
        torch.randn(32) * 1e-6,
        torch.randn(32) * 2e-8,
        torch.randn(32).sign() * 65000,
        torch.randint(0, 16, (32,)) * 0.25 - 1,
        *(torch.randn(32) ** 3 for _ in range(15)),
    ]
    assert_same(kind, torch.stack(groups).to(dtype), interleaved=False, cut=7)
