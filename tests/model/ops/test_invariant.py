"""Torch's operations are tested where the batch is kept out of a row's rounding."""

import pytest
import torch
from torch import Tensor

from octavo.model.ops import invariant
from octavo.model.ops.invariant import LARGE, cheap_linear, costs_little, invariant_linear
from octavo.model.ops.linear import Linear, linear
from octavo.model.weights.forms import Weight
from octavo.model.weights.kinds import INT4, INT8
from octavo.model.weights.precision import Precision
from octavo.model.weights.row_major import Int4RowMajor, Int8RowMajor, RowMajorWeight


@pytest.mark.parametrize(("outputs", "products"), [(8, 5), (LARGE + 1, 1)], ids=["router", "large matrix"])
def test_rows_that_nobody_asked_to_keep_apart_share_a_large_plain_matrix(
    monkeypatch: pytest.MonkeyPatch, outputs: int, products: int
) -> None:
    """One by one, the rows of a prompt would each read a matrix that float16 cannot hold."""
    rows: list[int] = []

    def linear(x: Tensor, weight: Weight) -> Tensor:
        rows.append(len(x))
        return torch.nn.functional.linear(x, weight)  # type: ignore[arg-type]

    monkeypatch.setattr(invariant, "linear", linear)
    x, weight = torch.randn(5, 16), torch.randn(outputs, 16)
    expected = x @ weight.T
    torch.testing.assert_close(cheap_linear(x, weight), expected)
    assert len(rows) == products and sum(rows) == 5
    torch.testing.assert_close(invariant_linear(x, weight), expected)
    assert len(rows) == products + 5


def test_beside_quantised_weights_rows_are_kept_apart() -> None:
    """Torch is left with a router here and a gate there."""
    assert costs_little(Precision(torch.float32, INT4, INT8))
    assert not costs_little(Precision.plain(torch.float32))


@pytest.mark.parametrize("kind", [Int8RowMajor, Int4RowMajor])
@pytest.mark.parametrize("product", [invariant_linear, cheap_linear])
def test_a_quantised_matrix_is_dequantised_once_for_all_rows(
    monkeypatch: pytest.MonkeyPatch, kind: type[RowMajorWeight], product: Linear
) -> None:
    """With --batch-invariant a GPU computes row by row, and an expert has some hundred million weights."""
    dequantised: list[RowMajorWeight] = []

    def dense(weight: RowMajorWeight) -> Tensor:
        dequantised.append(weight)
        return original(weight)

    original = kind.dense
    monkeypatch.setattr(kind, "dense", dense)
    x, weight = torch.randn(7, 256), kind.pack(torch.randn(24, 256))
    together = product(x, weight)
    assert dequantised == [weight]
    assert torch.equal(together, torch.cat([linear(row, weight) for row in x.split(1)]))
