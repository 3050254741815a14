"""Tests what a CPU's quantised types hold, where they hold it, and what they make of a matrix."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from octavo.model.weights.memory import zeros_on
from octavo.model.weights.tiles import GroupedWeight, Int4Weight, Int8Weight, TileLayout

grouped = pytest.mark.parametrize("kind", [Int8Weight, Int4Weight])
shapes = given(out=st.integers(1, 70), columns=st.integers(1, 100), interleaved=st.booleans())
quick = settings(derandomize=True, max_examples=40, deadline=None)


def random(out: int, columns: int) -> Tensor:
    """Returns a matrix whose groups differ in size and centre."""
    torch.manual_seed(out * 1000 + columns)
    return torch.randn(out, columns) * torch.rand(out, 1) + torch.randn(out, 1) * 0.1


def rows_of(interleaved: bool, out: int) -> int:
    return 2 * out if interleaved else out


@pytest.mark.parametrize(("kind", "steps"), [(Int8Weight, 0.5), (Int4Weight, 2)])  # int4 may cut extremes off
@quick
@shapes
def test_a_weight_is_within_steps_of_what_is_held(
    kind: type[GroupedWeight], steps: float, out: int, columns: int, interleaved: bool
) -> None:
    dense = random(rows_of(interleaved, out), columns)
    weight = kind.pack(dense, interleaved)
    assert weight.dense().shape == weight.shape == dense.shape
    held = weight.unpacked()
    assert held.quants.shape == (len(dense), weight.layout.groups, 32)
    step = held.scales.repeat_interleave(32, dim=1)[:, :columns]
    rounding = kind.levels / 2048 * step + dense.abs().max() / 2048  # of scales and mins to float16
    assert ((weight.dense() - dense).abs() <= steps * step + rounding).all()


@grouped
@quick
@shapes
def test_padding_is_zero_and_counted(kind: type[GroupedWeight], out: int, columns: int, interleaved: bool) -> None:
    rows = rows_of(interleaved, out)
    weight = kind.pack(random(rows, columns), interleaved)
    halves = 2 if interleaved else 1
    padded = halves * -(-out // 64) * 64
    assert weight.layout.panels * 64 == padded and weight.layout.groups == -(-columns // 64) * 2
    assert weight.nbytes == round(kind.bytes_per_weight * padded * weight.layout.groups * 32)
    unused = torch.ones(weight.layout.panels, 4, 16, dtype=torch.bool)
    unused[weight.layout.places(0, rows)] = False
    assert unused.sum() == padded - rows
    assert not weight.scales[unused].any()


@pytest.mark.parametrize(("columns", "block"), [(1, 1), (500, 8), (900, 15), (1024, 16), (64 * 34, 2), (14336, 16)])
def test_blocks_are_alike(columns: int, block: int) -> None:
    layout = TileLayout((64, columns))
    assert layout.block == block and math.prod(layout.cells) * 64 == 4 * -(-columns // 64) * 64


@grouped
def test_rows_may_come_in_any_pieces_and_types(kind: type[GroupedWeight]) -> None:
    dense = random(90, 70).bfloat16()
    whole = kind.pack(dense, interleaved=True)
    pieces = kind.empty(TileLayout((90, 70), interleaved=True), zeros_on(dense.device))
    for start, end in ((40, 57), (0, 40), (57, 90)):
        pieces.fill(dense[start:end].float(), start)
    assert torch.equal(whole.cells, pieces.cells)
    assert torch.equal(whole.unpacked().dense(), pieces.unpacked().dense())


def test_where_int8_keeps_a_weight() -> None:
    """The weight is in one of a tile's 20 cells; each of two blocks has 10 of them."""
    dense = torch.zeros(128, 20 * 64)
    dense[64 + 17, 12 * 64 + 32 + 6] = -3.0  # row 17 of the second half: output 1; cell 2 of block 1, second group
    plain, alternating = Int8Weight.pack(dense), Int8Weight.pack(dense, interleaved=True)
    assert plain.cells.shape == (2, 2, 4, 10, 64 + 2 * 32 * 16)
    for weight, panel, tile in ((plain, 1, 1), (alternating, 0, 3)):
        cell = weight.cells[panel, 1, tile, 2]
        assert cell[:64].view(torch.float16).nonzero().tolist() == [[16 + 1]]  # the scale
        assert cell[2 * (16 + 1) : 2 * (16 + 2)].view(torch.float16) == torch.tensor(3 / 127).half()
        quants = cell[64:].view(2, 8, 16, 4)  # group, slice of four inputs, output, input
        assert (quants != 128).nonzero().tolist() == [[1, 1, 1, 2]] and quants[1, 1, 1, 2] == 128 - 127
        assert (weight.cells[..., :64].any(-1)).nonzero().tolist() == [[panel, 1, tile, 2]]


def test_where_int4_keeps_a_weight() -> None:
    dense = torch.zeros(32, 64)
    dense[17, 32 + 6] = 15.0  # slice 1 of the second group: a low half
    dense[17, 32 + 22] = 5.0  # slice 5: the high half of the same byte
    dense[17, :32] = -2.0  # the first group's min
    cell = Int4Weight.pack(dense).cells[0, 0, 1, 0]
    assert cell.shape == (64 + 64 + 2 * 16 * 16,)
    scales, mins = cell[:64].view(torch.float16).view(2, 16), cell[64:128].view(torch.float16).view(2, 16)
    assert scales.nonzero().tolist() == [[1, 1]] and scales[1, 1] == 1
    assert mins.nonzero().tolist() == [[0, 1]] and mins[0, 1] == -2
    quants = cell[128:].view(2, 4, 16, 4)
    assert quants.nonzero().tolist() == [[1, 1, 1, 2]] and quants[1, 1, 1, 2] == 15 | 5 << 4


@grouped
def test_zeros_and_constants_stay_so(kind: type[GroupedWeight]) -> None:
    assert not kind.pack(torch.zeros(33, 40)).dense().any()
    constant = torch.full((33, 64), -0.25)
    torch.testing.assert_close(kind.pack(constant).dense(), constant, rtol=2**-11, atol=0)


@grouped
def test_what_scales_in_float16_do_not_serve(kind: type[GroupedWeight]) -> None:
    assert kind.holds(0) and kind.holds(0.01) and kind.holds(65504)
    assert not kind.holds(1e-5) and not kind.holds(65505)
