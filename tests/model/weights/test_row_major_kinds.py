"""Tests that a GPU holds the kinds of checkpoints as they are: nothing is rounded, and all comes back bit by bit."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from octavo.model.ops.linear import linear, linear_reference
from octavo.model.weights.kinds import SUPER, Kind, Offset, Scale
from octavo.model.weights.memory import zeros_on
from octavo.model.weights.parts import Parts
from octavo.model.weights.row_major_kinds import KindRowMajor, RowMajorForm, fp8_form, row_major_form
from octavo.model.weights.stack import Stack
from tests.model.weights.any_kind import MXFP4, NAMED, NF4, UNSIGNED4, random_parts

zeros = zeros_on(torch.device("cpu"))
SIGNED4 = tuple(range(-8, 8))
OFFSETS = (Offset.NONE, Offset.ZERO, Offset.MINIMUM)
TYPES = (Scale.FLOAT16, Scale.BFLOAT16, Scale.FLOAT32)
OF_CHECKPOINTS = {
    f"{8 if values is None else 4} bits, {group}, {scale}, {offset}": Kind(values, group, scale, offset)
    for values, offsets in ((UNSIGNED4, OFFSETS[1:]), (SIGNED4, OFFSETS[:1]), (None, OFFSETS))
    for group in (32, 64, 128, 256)
    for scale in TYPES
    for offset in offsets
}
OF_CHECKPOINTS |= {
    "4 bits, channel": Kind(SIGNED4, 0, Scale.NONE),
    "4 bits, channel, zero": Kind(UNSIGNED4, 0, Scale.NONE, Offset.ZERO),
    "8 bits, channel": Kind(None, 0, Scale.NONE),
    "8 bits, channel, zero": Kind(None, 0, Scale.NONE, Offset.ZERO),
    "mxfp4": NAMED["mxfp4"],
}
TWO_LEVELS = {name: kind for name, kind in NAMED.items() if kind.has_coarse and kind.values in (UNSIGNED4, None)}
each_kind = pytest.mark.parametrize("kind", OF_CHECKPOINTS.values(), ids=OF_CHECKPOINTS)


def form_of(kind: Kind) -> RowMajorForm:
    form = row_major_form(kind)
    assert form is not None
    return form


def held(form: RowMajorForm, parts: Parts) -> KindRowMajor:
    (weight,) = form.stack(1, (parts.codes.shape[0], parts.codes.shape[1]), zeros)
    weight.put(parts, 0)
    return weight


def dense(kind: Kind, parts: Parts) -> Tensor:
    """Returns what the parts mean by the description of kinds, which a CPU's weights follow, too."""
    inputs = parts.codes.shape[1]
    return parts.padded(kind, -(-inputs // kind.unit) * kind.unit).unpacked(kind).dense()[:, :inputs]


def assert_equal(one: Parts, other: Parts) -> None:
    for name in ("codes", "factors", "scales", "offsets", "coarse"):
        ours, theirs = getattr(one, name), getattr(other, name)
        assert (ours is None) == (theirs is None), name
        if ours is not None:
            assert ours.dtype == theirs.dtype and ours.equal(theirs), name


@each_kind
@pytest.mark.parametrize("inputs", [256, 288, 32])
def test_all_comes_back_as_it_was_put(kind: Kind, inputs: int) -> None:
    torch.manual_seed(inputs)
    parts = random_parts(kind, 20, inputs)
    weight = held(form_of(kind), parts)
    assert_equal(weight.parts(), parts)
    torch.testing.assert_close(weight.dense(), dense(kind, parts), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", TWO_LEVELS.values(), ids=TWO_LEVELS)
def test_two_levels_become_one_without_loss(kind: Kind) -> None:
    torch.manual_seed(0)
    parts = random_parts(kind, 20, 2 * SUPER)
    parts = replace(parts, factors=torch.ones(20))  # so that the only products are those of the levels, which are exact
    weight = held(form_of(kind), parts)
    exact = dense(kind, parts).double()
    torch.testing.assert_close(weight.dense().double(), exact, rtol=1e-6, atol=1e-7)
    if kind.offset is Offset.MINIMUM and parts.coarse is not None and parts.offsets is not None:
        wide = parts.coarse[..., 1].double().repeat_interleave(SUPER // kind.group, 1)
        assert weight.offsets is not None and weight.offsets.T.double().equal(wide * parts.offsets.double())


def test_values_are_where_a_checkpoint_means_them() -> None:
    """Spells the numbers out: of a nibble, a zero, a scale and a group, each is another one than its neighbours'."""
    codes = torch.arange(256).remainder(16).to(torch.uint8)[None]
    scales, offsets = torch.tensor([[1.0, 2.0]]).half(), torch.tensor([[3, 8]], dtype=torch.uint8)
    kind = Kind(UNSIGNED4, 128, Scale.FLOAT16, Offset.ZERO)
    weight = held(form_of(kind), Parts(codes, torch.ones(1), scales, offsets))
    expected = [n % 16 - 3 if n < 128 else 2 * (n % 16 - 8) for n in range(256)]
    assert weight.dense()[0].tolist() == expected


def test_the_values_of_mxfp4() -> None:
    """Compares with the table of the standard (OCP Microscaling Formats, section 5.3.3)."""
    codes = torch.arange(32).remainder(16).to(torch.uint8)[None]
    weight = held(form_of(NAMED["mxfp4"]), Parts(codes, torch.tensor([0.5]), torch.tensor([[128]], dtype=torch.uint8)))
    positive = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    assert weight.dense()[0, :16].tolist() == [2 * value for value in positive] + [-2 * value for value in positive]


def test_rows_may_come_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("octavo.model.weights.row_major_kinds.ON_CPU", 700)  # two rows at a time
    for kind in OF_CHECKPOINTS.values():
        parts = random_parts(kind, 30, 288)
        weight = form_of(kind).stack(1, (30, 288), zeros)[0]
        for rows in (slice(17, 30), slice(0, 17)):
            numbers = (None if part is None else part[rows] for part in (parts.scales, parts.offsets, parts.coarse))
            weight.put(Parts(parts.codes[rows], parts.factors[rows], *numbers), rows.start)
        assert_equal(weight.parts(), parts)


@pytest.mark.parametrize("group", [0, 128])
def test_fp8_is_held_as_it_is(group: int) -> None:
    torch.manual_seed(0)
    rows = torch.randn(20, 288).to(torch.float8_e4m3fn)
    scales = torch.rand(20, 3) if group else None
    parts = Parts(rows.view(torch.uint8), torch.rand(20), scales)
    weight = held(fp8_form(group), parts)
    assert_equal(weight.parts(), parts)
    wide = parts.factors[:, None] * (1 if scales is None else scales.repeat_interleave(128, 1)[:, :288])
    torch.testing.assert_close(weight.dense(), rows.float() * wide)


@pytest.mark.parametrize(
    "kind",
    [
        Kind(NF4, 64, Scale.BFLOAT16),  # no even steps
        Kind(UNSIGNED4, 96, Scale.FLOAT16),  # groups that lie across tiles
        Kind(UNSIGNED4, 128, Scale.INT8),
        NAMED["int4"],
        NAMED["a zero beside e8m0"],
        NAMED["minima of channels"],
        Kind(MXFP4, 32, Scale.FLOAT16, Offset.ZERO),
        Kind(None, 32, Scale.E8M0),
    ],
)
def test_what_the_kernels_have_no_form_for(kind: Kind) -> None:
    assert row_major_form(kind) is None


def test_the_bytes_of_a_weight() -> None:
    for kind in OF_CHECKPOINTS.values():
        form = form_of(kind)
        (weight,) = form.stack(1, (64, 512), zeros)
        of_outputs = 4 * 64 * (2 if kind.has_channel_offset else 1)
        assert weight.nbytes == form.bytes_per_weight * 64 * 512 + of_outputs
    assert form_of(Kind(UNSIGNED4, 128, Scale.FLOAT16, Offset.ZERO)).bytes_per_weight == 0.53125
    assert form_of(NAMED["mxfp4"]).bytes_per_weight == 0.53125


def test_a_stack_has_all_parts() -> None:
    form = replace(form_of(Kind(UNSIGNED4, 64, Scale.FLOAT32, Offset.ZERO)), ordered=True)
    views = form.stack(3, (10, 200), zeros)
    stack = Stack.of(views)
    assert (stack.format, stack.shape) == (form.format, (10, 200))
    assert set(stack.tensors()) == {"quants", "scales", "offsets", "factors", "order"}
    for number, view in enumerate(views):
        for name, part in view.tensors().items():
            assert stack.tensors()[name][number].data_ptr() == part.data_ptr()


def test_weights_of_different_formats_are_no_stack() -> None:
    one, other = (form_of(Kind(UNSIGNED4, group, Scale.FLOAT16)).stack(2, (10, 256), zeros) for group in (64, 128))
    with pytest.raises(ValueError, match="different ways"):
        Stack.of([one[0], other[1]])


def test_inputs_in_an_order_of_their_own() -> None:
    torch.manual_seed(0)
    kind = Kind(UNSIGNED4, 64, Scale.FLOAT16, Offset.ZERO)
    parts, order = random_parts(kind, 16, 192), torch.randperm(192)
    (weight,) = replace(form_of(kind), ordered=True).stack(1, (16, 192), zeros)
    weight.put(parts, 0)
    assert weight.order is not None
    weight.order.copy_(order)
    x = torch.randn(3, 192)
    torch.testing.assert_close(linear(x, weight), x[:, order] @ dense(kind, parts).T, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(linear_reference(x, weight), linear(x, weight), rtol=1e-5, atol=1e-5)
