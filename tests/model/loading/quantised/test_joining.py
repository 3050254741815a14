"""Tests that slices of one matrix share a kind that holds all of them exactly."""

import math

import pytest
import torch
from torch import Tensor

from octavo.model.config_file import ModelError
from octavo.model.loading.quantised.joining import kind_of, order_of, parts_of
from octavo.model.loading.quantised.mxfp4 import VALUES
from octavo.model.loading.quantised.stored import Affine, Table
from octavo.model.weights.kinds import CELL, Kind, Offset, Scale
from octavo.model.weights.memory import zeros_on
from octavo.model.weights.tiles import TiledWeight, TileLayout

SIGNED, UNSIGNED = tuple(range(-8, 8)), tuple(range(16))
F16, BF16, F32 = torch.float16, torch.bfloat16, torch.float32


def affine(
    bits: int = 4, group: int = 128, dtype: torch.dtype = F16, zeros: bool = False, order: Tensor | None = None
) -> Affine:
    out, inputs = 24, 384
    groups = math.ceil(inputs / group) if group else 1
    codes = torch.randint(0, 2**bits, (out, inputs), dtype=torch.uint8)
    points = torch.randint(0, 2**bits, (out, groups), dtype=torch.uint8)
    return Affine(codes, bits, group, torch.randn(out, groups).to(dtype), points if zeros else None, order)


@pytest.mark.parametrize(
    ("slices", "expected"),
    [
        ([affine()], Kind(SIGNED, 128, Scale.FLOAT16)),
        ([affine(zeros=True)], Kind(UNSIGNED, 128, Scale.FLOAT16, Offset.ZERO)),
        ([affine(8, 64, BF16)], Kind(None, 64, Scale.BFLOAT16)),
        ([affine(8, 64, F32, True)], Kind(None, 64, Scale.FLOAT32, Offset.ZERO)),
        ([affine(group=0)], Kind(SIGNED, 0, Scale.NONE)),
        ([affine(group=0, zeros=True)], Kind(UNSIGNED, 0, Scale.NONE, Offset.ZERO)),
        ([affine(8, 0, F32, True)], Kind(None, 0, Scale.NONE, Offset.ZERO)),
        ([affine(), affine(zeros=True)], Kind(UNSIGNED, 128, Scale.FLOAT16, Offset.ZERO)),
        ([affine(), affine(8, zeros=True)], Kind(None, 128, Scale.FLOAT16, Offset.ZERO)),
        ([affine(zeros=True), affine(8)], Kind(None, 128, Scale.FLOAT16, Offset.ZERO)),
        ([affine(), affine(8)], Kind(None, 128, Scale.FLOAT16)),
        ([affine(group=96), affine(group=128)], Kind(SIGNED, 32, Scale.FLOAT16)),
        ([affine(group=0), affine(group=64, zeros=True)], Kind(UNSIGNED, 64, Scale.FLOAT16, Offset.ZERO)),
        ([affine(dtype=F16), affine(dtype=BF16)], Kind(SIGNED, 128, Scale.FLOAT32)),
        ([affine(4, 0, F16), affine(8, 0, BF16, True)], Kind(None, 0, Scale.NONE, Offset.ZERO)),
        ([affine(group=256)], Kind(SIGNED, 128, Scale.FLOAT16)),  # 384 inputs are no whole groups
        ([affine(group=2048)], Kind(SIGNED, 128, Scale.FLOAT16)),
        ([affine(group=1056)], Kind(SIGNED, 96, Scale.FLOAT16)),
        ([affine(group=2**31)], Kind(SIGNED, 128, Scale.FLOAT16)),
    ],
)
def test_one_kind_holds_all_slices_exactly(slices: list[Affine], expected: Kind) -> None:
    kind = kind_of(slices)
    assert kind == expected
    rows = sum(each.shape[0] for each in slices)
    weight = TiledWeight.empty(TileLayout(kind, (rows, slices[0].shape[1])), zeros_on(torch.device("cpu")))
    first = 0
    for each in slices:
        weight.put(parts_of(each, kind), first)
        first += each.shape[0]
    exact = torch.cat([each.dense() for each in slices])
    # The product and the sum of the reference are rounded one by one.
    torch.testing.assert_close(weight.dense(), exact, rtol=1e-6, atol=1e-4 * exact.abs().max().item())
    check_held(weight, slices)


def check_held(weight: TiledWeight, slices: list[Affine]) -> None:
    """Checks that integers and scales are the file's, bit for bit."""
    held, kind, first = weight.parts(), weight.kind, 0
    for each in slices:
        rows, inputs = slice(first, first + each.shape[0]), each.shape[1]
        first += each.shape[0]
        raised = 120 if kind.bits > each.bits else 0
        assert torch.equal(held.codes[rows, :inputs], each.codes + raised)
        group, count = each.group or inputs, kind.group or inputs
        numbers = [n * count // group for n in range(math.ceil(inputs / count))]
        scales = held.factors[rows, None] if held.scales is None else held.scales[rows, : len(numbers)]
        assert torch.equal(scales.double(), each.scales[:, numbers].double())
        if kind.offset is Offset.ZERO:
            assert held.offsets is not None
            middle = torch.full_like(each.scales, each.middle, dtype=torch.uint8)
            zeros = (middle if each.zeros is None else each.zeros)[:, numbers].double() + raised
            bias = kind.bias if kind.group == 0 else 0
            assert torch.equal(held.offsets[rows, : len(numbers)].double() + bias, zeros)


@pytest.mark.parametrize("inputs", [64, 96, 160, 384, 768, 2880])
@pytest.mark.parametrize("group", [0, 32, 96, 128, 512, 1056, 4096])
def test_inputs_are_padded_to_cells_whatever_the_group(inputs: int, group: int) -> None:
    """Experts of a layer may have different groups, and share their activations."""
    groups = math.ceil(inputs / group) if group else 1
    stored = Affine(torch.zeros(16, inputs, dtype=torch.uint8), 4, group, torch.ones(16, groups))
    kind = kind_of([stored])
    assert kind is not None
    assert TileLayout(kind, stored.shape).inputs == math.ceil(inputs / CELL) * CELL


def test_tables_keep_their_values() -> None:
    codes = torch.randint(0, 16, (16, 64), dtype=torch.uint8)
    table = Table(codes, 32, torch.randint(100, 130, (16, 2), dtype=torch.uint8), VALUES, 0.5)
    kind = kind_of([table, table])
    assert kind == Kind(VALUES, 32, Scale.E8M0)
    weight = TiledWeight.empty(TileLayout(kind, (32, 64)), zeros_on(torch.device("cpu")))
    for first in (0, 16):
        weight.put(parts_of(table, kind), first)
    assert torch.equal(weight.dense(), table.dense().repeat(2, 1))
    assert kind_of([table, affine()]) is None


def test_slices_share_one_order() -> None:
    order, other = torch.randperm(384).int(), torch.randperm(384).int()
    assert order_of([affine(), affine()], "qkv") is None
    found = order_of([affine(order=order), affine(order=order.clone())], "qkv")
    assert found is not None and torch.equal(found, order)
    for second in (other, None):
        with pytest.raises(ModelError, match="qkv have inputs in different act orders"):
            order_of([affine(order=order), affine(order=second)], "qkv")
