"""Tests what a GPU's weight types hold, and what a stack of them is."""

import pytest
import torch
from torch import Tensor

from octavo.model.ops.experts import experts, experts_reference
from octavo.model.ops.linear import linear, linear_reference
from octavo.model.weights.forms import ExpertWeights
from octavo.model.weights.memory import zeros_on
from octavo.model.weights.row_major import (
    Fp8RowMajor,
    Int4RowMajor,
    Int8GroupedRowMajor,
    Int8RowMajor,
    RowMajorWeight,
)
from octavo.model.weights.stack import Format, Stack

KINDS = [Int8RowMajor, Int8GroupedRowMajor, Int4RowMajor, Fp8RowMajor]
each_kind = pytest.mark.parametrize("kind", KINDS)
zeros = zeros_on(torch.device("cpu"))


def random(out: int, columns: int) -> Tensor:
    """Returns rows that differ in size; groups are off centre by up to a third."""
    torch.manual_seed(out * 1000 + columns)
    return torch.randn(out, columns) * torch.rand(out, 1) + torch.randn(out, 1) * 0.1


def relative(weight: RowMajorWeight, dense: Tensor) -> float:
    return ((weight.dense() - dense).norm() / dense.norm()).item()


@pytest.mark.parametrize(
    ("kind", "normal", "laplace"),
    [
        (Int8RowMajor, 0.0086, 0.0131),
        (Int8GroupedRowMajor, 0.0066, 0.0092),
        (Int4RowMajor, 0.0935, 0.122),
        (Fp8RowMajor, 0.027, 0.027),
    ],
)
def test_what_a_format_loses(kind: type[RowMajorWeight], normal: float, laplace: float) -> None:
    torch.manual_seed(0)
    assert 0.9 * normal < relative(kind.pack(dense := torch.randn(200, 1280)), dense) < normal
    dense = torch.distributions.Laplace(0.0, 1.0).sample((200, 1280))
    assert 0.9 * laplace < relative(kind.pack(dense), dense) < laplace


@pytest.mark.parametrize(("out", "columns"), [(1, 1), (3, 64), (5, 130), (17, 256), (40, 577)])
@each_kind
def test_a_weight_is_within_steps_of_what_is_held(kind: type[RowMajorWeight], out: int, columns: int) -> None:
    dense = random(out, columns)
    weight = kind.pack(dense)
    held = weight.dense()
    assert (held.dtype, held.shape, weight.shape) == (torch.float32, dense.shape, dense.shape)
    scales = (weight.scales[..., 0] if kind is Int4RowMajor else weight.scales).T.float()
    step = scales if kind in (Int8RowMajor, Fp8RowMajor) else scales.repeat_interleave(128, dim=1)[:, :columns]
    if kind is Fp8RowMajor:
        step = dense.abs() / 8 + step * 2**-9  # three bits of mantissa, subnormal at the end
    limit = 2 if kind is Int4RowMajor else 0.5  # int4 may cut extremes off
    assert ((held - dense).abs() <= limit * step * 1.001).all()


@each_kind
def test_what_it_takes(kind: type[RowMajorWeight]) -> None:
    weight = kind.pack(random(10, 640))
    metadata = 4 * 10 if len(weight.scales) == 1 else 0
    assert weight.nbytes == kind.bytes_per_weight * 6400 + metadata
    assert all(part.is_contiguous() for part in weight.tensors().values())


@each_kind
def test_zeros_and_constants_stay_so(kind: type[RowMajorWeight]) -> None:
    assert not kind.pack(torch.zeros(3, 140)).dense().any()
    for value in (-0.25, 0.25):
        constant = torch.full((3, 140), value)
        torch.testing.assert_close(kind.pack(constant).dense(), constant, rtol=2**-10, atol=0)


def test_where_int4_keeps_a_weight() -> None:
    dense = torch.zeros(3, 200)
    dense[1, 128:160] = torch.arange(32) % 16  # the second group, which is padded: a grid from 0 to 15
    dense[1, 160 + 6] = 5.0  # the second quarter: four bits further on
    dense[1, 160 + 7] = 9.0  # the other input of that pair: the word's upper half
    weight = Int4RowMajor.pack(dense)
    assert [part.shape for part in weight.tensors().values()] == [(3, 32), (2, 3, 2)]
    assert weight.scales[:, 1].tolist() == [[0, 0], [1, 0]]  # step and min
    pairs = [(2 * w % 16) | (2 * w + 1) % 16 << 16 for w in range(16)]
    pairs[3] |= 5 << 4 | 9 << 20
    assert weight.quants[1, 16:].tolist() == pairs
    torch.testing.assert_close(
        (weight.scales[1, 1, 1], Int4RowMajor.pack(dense - 3).dense()), (torch.tensor(0.0).half(), dense - 3)
    )


def test_int4_uses_all_bits_of_a_word() -> None:
    dense = torch.arange(128).remainder(16).flip(0).float()[None]
    dense[0, 97] = 15  # the sign bit of the first word
    weight = Int4RowMajor.pack(dense)
    assert weight.quants[0, 0] < 0
    torch.testing.assert_close(weight.dense(), dense, rtol=0, atol=0)


@each_kind
def test_rows_may_come_in_any_pieces_and_types(kind: type[RowMajorWeight], monkeypatch: pytest.MonkeyPatch) -> None:
    dense = random(90, 200).bfloat16()
    whole = kind.pack(dense)
    monkeypatch.setattr("octavo.model.weights.row_major.ON_CPU", 700)  # three rows at a time
    (pieces,) = kind.stack(1, (90, 200), zeros)
    for start, end in ((40, 57), (0, 40), (57, 90)):
        pieces.fill(dense[start:end].float(), start)
    for one, other in zip(whole.tensors().values(), pieces.tensors().values(), strict=True):
        assert torch.equal(one.view(torch.uint8), other.view(torch.uint8))


@each_kind
def test_quantising_needs_nothing_of_the_host(kind: type[RowMajorWeight]) -> None:
    (weight,) = kind.stack(1, (8, 200), zeros_on(torch.device("meta")))
    weight.fill(torch.empty(8, 200, device="meta"), 0)  # a value that the host looked at would raise
    assert weight.dense().shape == (8, 200)


def test_what_scales_serve() -> None:
    for kind in KINDS:
        assert kind.holds(0) and kind.holds(0.01) and kind.holds(65504)
        assert not kind.holds(float("inf")) and not kind.holds(float("nan"))
    assert Int8RowMajor.holds(1e-9) and Int8RowMajor.holds(1e30) and not Int8RowMajor.holds(1e-37)
    assert not Int4RowMajor.holds(1e-5) and not Int4RowMajor.holds(65505)


@each_kind
def test_a_stack_is_its_views(kind: type[RowMajorWeight]) -> None:
    views = kind.stack(3, (10, 200), zeros)
    for number, view in enumerate(views):
        view.fill(random(10, 200) * (number + 1), 0)
    stack = Stack.of(views)
    assert (stack.format, stack.shape, stack.quants.shape[:2]) == (kind.held_as, (10, 200), (3, 10))
    for number, view in enumerate(views):
        for name, held in view.tensors().items():
            part = stack.tensors()[name]
            assert part[number].data_ptr() == held.data_ptr()
            assert torch.equal(part[number].view(torch.uint8), held.view(torch.uint8))


@pytest.mark.parametrize(
    ("dtype", "kind"), [(torch.bfloat16, "bf16"), (torch.float16, "fp16"), (torch.float32, "fp32")]
)
def test_a_stack_of_plain_tensors(dtype: torch.dtype, kind: str) -> None:
    whole = torch.randn(4, 6, 8).to(dtype)
    stack = Stack.of(whole.unbind())
    assert (stack.format, stack.shape, list(stack.tensors())) == (Format(kind), (6, 8), ["quants"])
    assert stack.quants.data_ptr() == whole.data_ptr() and torch.equal(stack.quants, whole)
    assert torch.equal(Stack.of(whole.unbind()[1:3]).quants, whole[1:3])
    assert torch.equal(Stack.of((whole[2],)).quants, whole[2:3])


def test_what_is_no_stack() -> None:
    whole = torch.randn(4, 6, 8)
    quantised = Int8RowMajor.stack(2, (6, 8), zeros)
    for wrong in (
        [whole[0], whole[0].clone()],
        [whole[1], whole[0]],
        [whole[0], whole[2]],
        [whole[0].T, whole[1].T],
        [whole[0], quantised[1]],
        [quantised[0], Int8RowMajor.pack(whole[1])],
        [quantised[0], whole[1]],
        [whole[0].double(), whole[1].double()],
        ["weights"],
    ):
        with pytest.raises(ValueError, match="stack|views"):
            Stack.of(wrong)


@each_kind
@pytest.mark.parametrize(("rows", "columns", "out"), [(1, 16, 16), (5, 130, 20), (3, 256, 7)])
def test_torch_multiplies_by_it(kind: type[RowMajorWeight], rows: int, columns: int, out: int) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(rows, columns), kind.pack(torch.randn(out, columns))
    torch.testing.assert_close(linear(x, weight), linear_reference(x, weight), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(linear_reference(x, weight), linear_reference(x, weight.dense()))


@each_kind
def test_experts_of_it(kind: type[RowMajorWeight]) -> None:
    torch.manual_seed(0)
    gate_up, down = kind.stack(3, (24, 130), zeros), kind.stack(3, (130, 12), zeros)
    for weight in (*gate_up, *down):
        weight.fill(torch.randn(weight.shape) / weight.shape[1] ** 0.5, 0)
    x, ids = torch.randn(5, 130), torch.tensor([[0, 2], [2, 1], [0, 1], [1, 2], [2, 0]])
    weights = torch.rand(5, 2)
    held = ExpertWeights(gate_up, down)
    torch.testing.assert_close(
        experts(x, ids, weights, held), experts_reference(x, ids, weights, held), rtol=1e-4, atol=1e-5
    )
