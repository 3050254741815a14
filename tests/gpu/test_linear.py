"""Products with a quantised matrix that every token passes, against float64 on the weights as they are held."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from octavo.model.kernels.gpu.configs import Config, table
from octavo.model.kernels.gpu.linear import linear, multiply
from octavo.model.weights.kinds import Scale
from octavo.model.weights.memory import zeros_on
from octavo.model.weights.parts import Parts
from octavo.model.weights.row_major import Int4RowMajor, Int8RowMajor
from octavo.model.weights.row_major_kinds import row_major_form
from octavo.model.weights.stack import Stack
from tests.gpu.stacks import GPTQ, Kind, make, random_held
from tests.model.weights.any_kind import NAMED

CONFIG = Config(rows=32, tokens=16, inputs=64, splits=1, warps=4, stages=2)
BF16 = torch.bfloat16


def compare(kind: Kind, tokens: int, shape: tuple[int, int], config: Config, device: torch.device) -> None:
    stack, dense = make(kind, BF16, (1, *shape), device)
    x = torch.randn(tokens, shape[1], device=device).to(BF16)
    out = multiply(x, stack, config)
    expected = x.double() @ dense[0].double().T
    assert out.dtype == BF16
    torch.testing.assert_close(out.double(), expected, rtol=2**-7, atol=2e-3)


@pytest.mark.parametrize(("kind", "splits"), [(GPTQ(128, Scale.FLOAT16), 2), (NAMED["mxfp4"], 1), (Int8RowMajor, 4)])
def test_tokens_rows_and_inputs_that_end_within_tiles(device: torch.device, kind: Kind, splits: int) -> None:
    compare(kind, 18, (40, 328), replace(CONFIG, splits=splits), device)


def test_whole_tiles_and_bands_of_blocks(device: torch.device) -> None:
    compare(Int4RowMajor, 32, (16 * 9, 256), replace(CONFIG, rows=16), device)


def test_a_row_does_not_depend_on_the_others(device: torch.device) -> None:
    stack, _ = make(GPTQ(128, Scale.FLOAT16), BF16, (1, 40, 256), device)
    x, config = torch.randn(19, 256, device=device).to(BF16), replace(CONFIG, splits=2)
    assert multiply(x, stack, config)[17].equal(multiply(x[17:18], stack, config)[0])


def test_the_inputs_are_put_in_the_order_of_the_weights(device: torch.device) -> None:
    kind = GPTQ(32, Scale.FLOAT16)
    form = row_major_form(kind)
    assert form is not None
    (weight,) = replace(form, ordered=True).stack(1, (32, 160), zeros_on(device))
    parts, dense = random_held(kind, 32, 160)
    weight.put(parts, 0)
    order = torch.randperm(160)
    assert weight.order is not None
    weight.order.copy_(order)
    x = torch.randn(3, 160)
    out = linear(x.to(device), weight, "sm_90")
    torch.testing.assert_close(out.cpu(), x[:, order] @ dense.T, rtol=1e-4, atol=1e-4)


FAULTS: dict[str, Callable[[Parts], Parts]] = {
    "none": lambda parts: parts,
    "zeros off by one": lambda parts: replace(parts, offsets=None if parts.offsets is None else parts.offsets + 1),
    "nibbles swapped": lambda parts: replace(parts, codes=parts.codes.unflatten(1, (-1, 2)).flip(2).flatten(1)),
    "the next group": lambda parts: replace(parts, scales=None if parts.scales is None else parts.scales.roll(1, 1)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_comparison_finds_a_fault(device: torch.device, fault: str) -> None:
    """Holds weights as a kernel with that fault would read them."""
    torch.manual_seed(0)
    kind = GPTQ(64, Scale.FLOAT16)
    form, (parts, dense) = row_major_form(kind), random_held(kind, 40, 256)
    assert form is not None
    (weight,) = form.stack(1, (40, 256), zeros_on(device))
    weight.put(FAULTS[fault](parts), 0)
    x = torch.randn(5, 256)
    out = multiply(x.to(device), Stack.of((weight,)), CONFIG).cpu()
    right = torch.isclose(out, x @ dense.T, rtol=1e-4, atol=1e-4)
    assert right.all() if fault == "none" else right.double().mean() < 0.2


def test_each_kind_of_weight_has_lines_for_it() -> None:
    kinds = {(entry.arch, entry.kind) for entry in table() if entry.op == "linear.multiply"}
    assert kinds == {(arch, kind) for arch in ("sm_80", "sm_86", "sm_90") for kind in ("int4", "int8")} | {
        ("sm_89", "fp8"),
        ("sm_90", "fp8"),
    }
