"""Tests where a CPU's tiles hold a matrix of any kind, and that nothing that is put there changes."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from octavo.model.weights.kinds import EVEN4, GROUP, INT4, INT8, INT8_FINE, Kind, Offset, Scale
from octavo.model.weights.memory import zeros_on
from octavo.model.weights.tiles import PANEL, TiledWeight, TileLayout
from tests.model.weights.any_kind import KINDS, NAMES, random_order, random_parts

every_kind = pytest.mark.parametrize("kind", KINDS, ids=NAMES)
rounded = pytest.mark.parametrize("kind", [INT8, INT4, EVEN4], ids=["int8", "int4", "even4"])
quick = settings(derandomize=True, max_examples=30, deadline=None)


def random(out: int, columns: int) -> Tensor:
    """Returns a matrix whose groups differ in size and centre."""
    torch.manual_seed(out * 1000 + columns)
    return torch.randn(out, columns) * torch.rand(out, 1) + torch.randn(out, 1) * 0.1


@every_kind
@quick
@given(out=st.integers(1, 70), columns=st.integers(1, 700), interleaved=st.booleans())
def test_what_is_put_in_comes_out(kind: Kind, out: int, columns: int, interleaved: bool) -> None:
    """Puts the rows in in two pieces."""
    out = 2 * out if interleaved else out
    layout = TileLayout(kind, (out, columns), interleaved)
    weight = TiledWeight.empty(layout, zeros_on(torch.device("cpu")))
    above, below = random_parts(kind, out // 3, columns), random_parts(kind, out - out // 3, columns)
    weight.put(below, out // 3)
    weight.put(above, 0)
    held = weight.parts()
    for name in ("codes", "factors", "scales", "offsets", "coarse"):
        upper, lower, both = (getattr(parts, name) for parts in (above, below, held))
        assert (both is None) == (upper is None)
        if both is not None:
            both = both[:, : upper.shape[1]] if both.dim() > 1 else both
            assert torch.equal(both, torch.cat((upper, lower)))


@every_kind
@quick
@given(columns=st.integers(1, 1500))
def test_a_weight_is_what_its_parts_say(kind: Kind, columns: int) -> None:
    """Computes each weight from the formula, one by one."""
    parts = random_parts(kind, 2, columns)
    weight = TiledWeight.empty(TileLayout(kind, (2, columns)), zeros_on(torch.device("cpu")))
    weight.put(parts, 0)
    dense = weight.dense()
    for row, column in ((0, 0), (1, columns - 1), (1, columns // 2)):
        assert dense[row, column].item() == pytest.approx(by_formula(kind, parts, row, column), rel=1e-6, abs=1e-6)


def test_columns_of_the_dense_matrix_are_in_the_order_of_x() -> None:
    torch.manual_seed(0)
    stored, order = torch.randn(20, 70), random_order(70)
    plain = TiledWeight.pack(INT8, stored)
    ordered = replace(plain, order=order)
    dense = ordered.dense()
    for n, column in enumerate(order.tolist()):
        assert torch.equal(dense[:, column], plain.dense()[:, n])
    x = torch.randn(3, 70)
    torch.testing.assert_close(x @ dense.T, ordered.gathered(x) @ plain.dense().T)
    assert torch.equal(ordered.parts().codes, plain.parts().codes)
    assert ordered.nbytes == plain.nbytes + 70 * 4


def by_formula(kind: Kind, parts, row: int, column: int) -> float:
    group = column // kind.group if kind.group else 0
    code, scale = parts.codes[row, column].item(), parts.factors[row].item()
    value = code - 128 if kind.values is None else kind.values[code]
    coarse = (1.0, 1.0) if parts.coarse is None else (*parts.coarse[row, column // 256].tolist(), 1.0)
    if kind.scale is Scale.E8M0:
        scale *= 2.0 ** (parts.scales[row, group].item() - 127)
    elif parts.scales is not None:
        scale *= parts.scales[row, group].item() * coarse[0]
    match kind.offset:
        case Offset.ODD:
            return scale * (value + parts.scales[row, group].item() % 2 * kind.shift)
        case Offset.ZERO:
            bias = 128 if kind.values is None and kind.group else 0
            return scale * (value - (parts.offsets[row, group].item() - bias))
        case Offset.MINIMUM:
            return scale * value + parts.offsets[row, group].item() * coarse[1]
    return scale * value


@every_kind
@pytest.mark.parametrize("columns", [1, 64, 500, 900, 1024, 64 * 34, 14336])
def test_blocks_are_alike_and_begin_at_lines(kind: Kind, columns: int) -> None:
    layout = TileLayout(kind, (64, columns))
    assert layout.block <= 1024 and layout.blocks * layout.block == layout.inputs
    assert layout.inputs - columns < kind.unit and layout.inputs % GROUP == 0
    assert layout.numbers % 64 == layout.tile_bytes % 64 == layout.panel_bytes % 64 == 0


@pytest.mark.parametrize(("columns", "block"), [(1, 64), (500, 512), (900, 960), (1024, 1024), (64 * 34, 128)])
def test_blocks_are_as_large_as_they_can_be(columns: int, block: int) -> None:
    assert TileLayout(INT8, (64, columns)).block == block


@rounded
@quick
@given(out=st.integers(1, 70), columns=st.integers(1, 100), interleaved=st.booleans())
def test_padding_is_zero_and_counted(kind: Kind, out: int, columns: int, interleaved: bool) -> None:
    rows = 2 * out if interleaved else out
    weight = TiledWeight.pack(kind, random(rows, columns), interleaved)
    halves = 2 if interleaved else 1
    padded = halves * -(-out // PANEL) * PANEL
    assert weight.layout.panels * PANEL == padded and weight.layout.inputs == -(-columns // 64) * 64
    numbers = padded * weight.layout.inputs / 32 * (4 if kind == EVEN4 else 1)
    assert 0 <= weight.nbytes - padded * (weight.layout.inputs * kind.bits / 8 + 4) - numbers <= 64 * padded
    unused = torch.ones(weight.layout.panels, 4, 16, dtype=torch.bool)
    unused[weight.layout.places(0, rows)] = False
    assert unused.sum() == padded - rows
    factors = weight.memory[:, :256].view(torch.float32).unflatten(1, (4, 16))
    assert not factors[unused].any()


@rounded
def test_rows_may_come_in_any_pieces_and_types(kind: Kind) -> None:
    dense = random(90, 70).bfloat16()
    whole = TiledWeight.pack(kind, dense, interleaved=True)
    layout = TileLayout(kind, (90, 70), interleaved=True)
    pieces = TiledWeight.empty(layout, zeros_on(dense.device))
    for start, end in ((40, 57), (0, 40), (57, 90)):
        pieces.fill(dense[start:end].float(), start)
    assert torch.equal(whole.memory, pieces.memory)
    assert torch.equal(whole.unpacked().dense(), pieces.unpacked().dense())


def test_where_int8_keeps_a_weight() -> None:
    """The weight is in the second of two blocks of 640 inputs."""
    dense = torch.zeros(128, 1280)
    dense[64 + 17, 640 + 2 * 64 + 32 + 6] = -3.0  # row 17 of the second half: output 1; group 5 of block 1
    plain, alternating = TiledWeight.pack(INT8, dense), TiledWeight.pack(INT8, dense, interleaved=True)
    numbers, codes = 20 * 16, 640 * 16
    assert plain.memory.shape == (2, 256 + 2 * 4 * (numbers + codes))
    for weight, panel, tile in ((plain, 1, 1), (alternating, 0, 3)):
        factors = weight.memory[:, :256].view(torch.float32)
        assert factors.nonzero().tolist() == [[panel, 16 * tile + 1]]
        assert factors[panel, 16 * tile + 1].item() == pytest.approx(3 / 127 / 127)
        block = weight.memory[panel, 256:].view(2, 4, -1)[1, tile]
        scales = block[:numbers].view(torch.int8).view(20, 16)
        assert scales.nonzero().tolist() == [[5, 1]] and scales[5, 1] == 127
        held = block[numbers:].view(20, 8, 16, 4)  # group, slice of four inputs, output, input
        assert (held != 128).nonzero().tolist() == [[5, 1, 1, 2]] and held[5, 1, 1, 2] == 128 - 127


def test_where_int4_keeps_a_weight() -> None:
    assert INT4.values is not None
    dense = torch.zeros(32, 64)
    dense[17, 32 + 6] = 29.0  # slice 1 of the second group: a low half
    dense[17, 32 + 22] = 5.9  # slice 5: the high half of the same byte
    weight = TiledWeight.pack(INT4, dense)
    block = weight.memory[0, 256:].view(1, 4, -1)[0, 1]
    codes = block[64:].view(2, 4, 16, 4)  # group, slice, output, input; the numbers are padded to a line
    none = INT4.values.index(0)
    assert (codes[:, :, 1] != none | none << 4).nonzero().tolist() == [[1, 1, 2]]
    assert codes[1, 1, 1, 2] == 15 | INT4.values.index(6) << 4
    assert block[:32].view(2, 16).nonzero().tolist() == [[1, 1]]


@rounded
def test_zeros_and_constants_stay_so(kind: Kind) -> None:
    assert not TiledWeight.pack(kind, torch.zeros(33, 40)).dense().any()
    constant = torch.full((33, 64), -0.25)
    torch.testing.assert_close(TiledWeight.pack(kind, constant).dense(), constant, rtol=2**-6, atol=0)


@pytest.mark.parametrize("largest", [1e-30, 1e-5, 1.0, 65505.0, 1e30])
@pytest.mark.parametrize("kind", [INT8, INT8_FINE, INT4], ids=["int8", "fine", "int4"])
def test_any_magnitude_is_held(kind: Kind, largest: float) -> None:
    dense = random(8, 64)
    dense *= largest / dense.abs().max()
    error = (TiledWeight.pack(kind, dense).dense() - dense).double().norm() / dense.double().norm()
    assert error < (0.12 if kind == INT4 else 0.01)


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_a_kind_is_written_down_and_read_again(kind: Kind) -> None:
    assert Kind.from_json(kind.to_json()) == kind
    size = TileLayout(kind, (4096, 6144))
    held = size.panels * (size.panel_bytes - size.header)
    assert held == pytest.approx(kind.bytes_per_weight * 4096 * 6144, rel=0.01)


@pytest.mark.parametrize(
    "fields",
    [
        {"values": (1, 2)},
        {"values": (200,) * 16},
        {"group": 48},
        {"group": 0},
        {"group": 2048},
        {"scale": Scale.NONE},
        {"scale": Scale.INT8_OF_256, "group": 512},
        {"offset": Offset.ODD, "scale": Scale.FLOAT16},
        {"offset": Offset.MINIMUM, "scale": Scale.E8M0},
    ],
)
def test_what_means_nothing_is_no_kind(fields: dict) -> None:
    with pytest.raises(ValueError):
        Kind(**({"values": None, "group": 32, "scale": Scale.INT8} | fields))
    assert math.isclose(INT4.bytes_per_weight, 0.53125)
