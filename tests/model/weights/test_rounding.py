"""Tests what the kinds that Octavo makes itself lose, and for which weights each of them is taken."""

import pytest
import torch
from torch import Tensor

from octavo.model.weights.kinds import EVEN4, GROUP, INT4, INT8, Kind
from octavo.model.weights.rounding import kind_for, quantise

FORMS = {
    "normal": lambda: torch.randn(64, 1024),
    "laplace": lambda: torch.randn(64, 1024) * torch.empty(64, 1024).exponential_().sqrt(),
    "outputs of many sizes": lambda: torch.randn(64, 1024) * 2.0 ** torch.randint(-8, 8, (64, 1)),
    "with single large weights": lambda: torch.randn(64, 1024) * (1 + 20 * (torch.rand(64, 1024) > 0.999)),
}
forms = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


def relative_error(rows: Tensor, kind: Kind) -> float:
    """Returns the root mean square of the errors over that of the weights."""
    rounded = quantise(rows, kind).unpacked(kind).dense()
    return ((rounded - rows).double().norm() / rows.double().norm()).item()


def targets(rows: Tensor, kind: Kind) -> tuple[Tensor, Tensor]:
    """Returns the values that a kind should hold, before rounding, and those that it holds: [n, groups, 32] each."""
    parts = quantise(rows, kind)
    held = parts.unpacked(kind)
    moved = rows.unflatten(1, (-1, GROUP)).double()
    if held.minima is not None:
        moved = moved - held.minima.double()[..., None]
    return moved / held.scales.double()[..., None], held.quants.double()


@pytest.mark.parametrize(
    ("kind", "most"), [(INT8, 0.006), (INT4, 0.074), (EVEN4, 0.073)], ids=["int8", "int4", "even4"]
)
def test_what_normal_weights_lose(kind: Kind, most: float) -> None:
    torch.manual_seed(0)
    assert relative_error(torch.randn(64, 1024), kind) < most


@forms
def test_int4_loses_hardly_more_than_even_steps_that_take_more_memory(form) -> None:
    """A large weight makes the steps of its output's scales coarse for the other groups, which costs more."""
    torch.manual_seed(1)
    rows, most = form(), 1.2 if form is FORMS["with single large weights"] else 1.03
    assert relative_error(rows, INT4) < most * relative_error(rows, EVEN4)
    assert INT4.bytes_per_weight < 0.86 * EVEN4.bytes_per_weight


@forms
def test_int8_never_clips(form) -> None:
    """The largest weight is at most 127 steps, so that each weight is within half a step of what is held."""
    torch.manual_seed(2)
    wanted, held = targets(form(), INT8)
    assert wanted.abs().max() < 127 * (1 + 1e-6)
    assert (wanted - held).abs().max() < 0.5 + 1e-4
    assert held.abs().amax(-1).min() > 1  # No scale is so coarse that it wastes the range of a group.


@forms
def test_int4_takes_the_nearest_value(form) -> None:
    assert INT4.values is not None
    torch.manual_seed(3)
    wanted, held = targets(form(), INT4)
    values = torch.tensor(INT4.values, dtype=torch.float64)
    nearest = (wanted[..., None] - values).abs().amin(-1)
    torch.testing.assert_close((wanted - held).abs(), nearest, rtol=0, atol=1e-4)


def test_the_shift_is_taken_where_it_helps() -> None:
    """Groups that both tables serve equally well choose one half of the time."""
    torch.manual_seed(4)
    scales = quantise(torch.randn(64, 1024), INT4).scales
    assert scales is not None and 0.3 < (scales.int() & 1).float().mean() < 0.7


def even(minimum: float | None) -> Tensor:
    """Returns weights in 16 even steps for each 32 inputs; the steps begin at a minimum, or at -8 steps.

    Each 32 have a weight at either end, as Q4_1 makes them.
    """
    steps = 0.01 + 0.02 * torch.rand(64, 32, 1)
    codes = torch.randint(0, 16, (64, 32, GROUP)).float()
    codes[..., 3], codes[..., 20] = 0, 15
    begins = -8 * steps if minimum is None else minimum * torch.rand(64, 32, 1)
    return (codes * steps + begins).flatten(1)


@pytest.mark.parametrize("minimum", [None, -0.2, 0.1], ids=["as q4_0", "as q4_1", "as q4_1, above 0"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_that_were_in_even_steps_keep_them(minimum: float | None, dtype: torch.dtype) -> None:
    torch.manual_seed(5)
    rows = even(minimum).to(dtype)
    assert kind_for(rows, INT4) == EVEN4
    assert relative_error(rows.float(), EVEN4) < 0.01
    assert kind_for(rows, INT8) == INT8  # 8 bits were asked for.


@pytest.mark.parametrize(
    "rows",
    [
        torch.randn(64, 1024, generator=torch.Generator().manual_seed(6)),
        torch.randn(64, 1024, generator=torch.Generator().manual_seed(6)).bfloat16(),
        torch.tensor(INT4.values).float()[torch.randint(0, 16, (64, 1024))] / 100,  # 16 values in uneven steps
        torch.ones(64, 31),  # less than a group
    ],
    ids=["normal", "normal, bfloat16", "uneven steps", "no whole group"],
)
def test_other_weights_are_int4(rows: Tensor) -> None:
    assert kind_for(rows, INT4) == INT4


def test_even_steps_that_float16_cannot_hold_are_int4() -> None:
    torch.manual_seed(7)
    for size in (1e-9, 1e9):
        assert kind_for(even(None) * size, INT4) == INT4
