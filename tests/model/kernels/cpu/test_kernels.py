"""Compares the C kernels with the references on every instruction set of the machine, and their rows bit for bit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from octavo.model.kernels.cpu.library import Library, library
from octavo.model.kernels.cpu.structs import ExpertsStruct, WeightStruct
from octavo.model.ops.experts import experts_reference
from octavo.model.ops.linear import linear_reference
from octavo.model.weights.forms import ExpertWeights
from octavo.model.weights.kinds import INT4, INT8, Kind
from octavo.model.weights.tiles import TiledWeight
from tests.model.weights.any_kind import KINDS, NAMED, NAMES, random_weight

KERNELS = library()
LEVELS = [] if KERNELS is None else [level for level in KERNELS.levels() if KERNELS.set_level(level)]

pytestmark = pytest.mark.skipif(KERNELS is None, reason="the C kernels were not built")
each_kind = pytest.mark.parametrize("kind", KINDS, ids=NAMES)


def random_experts(kind: Kind, count: int, hidden: int, wide: int) -> ExpertWeights:
    """Returns experts of unlike sizes, whose results are about as large as their inputs."""
    gate_up = tuple(random_weight(kind, (2 * wide, hidden), interleaved=True) for _ in range(count))
    return ExpertWeights(gate_up, tuple(random_weight(kind, (hidden, wide)) for _ in range(count)))


def chosen(tokens: int, top_k: int, among: int) -> tuple[Tensor, Tensor]:
    ids = torch.stack([torch.randperm(among)[:top_k] for _ in range(tokens)])
    return ids, torch.rand(tokens, top_k).softmax(-1)


@each_kind
@settings(derandomize=True, max_examples=12, deadline=None)
@given(tokens=st.integers(1, 21), outputs=st.integers(1, 70), inputs=st.integers(1, 100), data=st.data())
def test_linear(kind: Kind, tokens: int, outputs: int, inputs: int, data: st.DataObject) -> None:
    torch.manual_seed(data.draw(st.integers(0, 99)))
    terms = data.draw(st.integers(1, 2), label="terms")
    ordered = data.draw(st.booleans(), label="ordered")
    weight = random_weight(kind, (outputs, inputs), terms=terms, ordered=ordered)
    x = torch.randn(tokens, inputs) * 3
    expected = linear_reference(x, weight)
    assert KERNELS is not None
    for level in LEVELS:
        KERNELS.set_level(level)
        torch.testing.assert_close(KERNELS.linear(x, WeightStruct.of(weight)), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", [INT8, INT4], ids=["int8", "int4"])
@pytest.mark.parametrize("tokens", [1, 2, 7, 40])
@pytest.mark.parametrize("shape", [(64, 96), (40, 24)])
def test_experts(kernels: Library, kind: Kind, tokens: int, shape: tuple[int, int]) -> None:
    """Leaves the last two experts without tokens."""
    torch.manual_seed(tokens)
    weights = random_experts(kind, 7, *shape)
    x = torch.randn(tokens, shape[0])
    ids, shares = chosen(tokens, 2, 5)
    actual = kernels.experts(x, ids, shares, ExpertsStruct.of(weights, 2))
    torch.testing.assert_close(actual, experts_reference(x, ids, shares, weights), rtol=1e-3, atol=2e-3)


@each_kind
def test_experts_of_every_kind(kind: Kind) -> None:
    """Widths that no block of 256 inputs divides leave padding behind the inner activations."""
    assert KERNELS is not None
    torch.manual_seed(0)
    weights, x = random_experts(kind, 3, 24, 40), torch.randn(9, 24)
    ids, shares = chosen(9, 2, 3)
    expected = experts_reference(x, ids, shares, weights)
    for level in LEVELS:
        KERNELS.set_level(level)
        actual = KERNELS.experts(x, ids, shares, ExpertsStruct.of(weights, 2))
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=2e-3)


def test_experts_that_are_padded_differently_are_refused() -> None:
    """One would read activations beyond the end of those that were made for another."""
    plain, wider = (random_experts(NAMED[name], 1, 24, 40) for name in ("int4", "q4_k"))
    with pytest.raises(ValueError, match="pad their inputs differently"):
        ExpertsStruct.of(ExpertWeights(plain.gate_up + wider.gate_up, plain.down + wider.down), 1)


@each_kind
def test_a_row_is_the_same_bits_whatever_comes_with_it(kernels: Library, kind: Kind) -> None:
    torch.manual_seed(0)
    weights = random_experts(kind, 8, 64, 96)
    struct = ExpertsStruct.of(weights, 2)
    x = torch.randn(33, 64)
    ids, shares = chosen(33, 2, 8)
    alone = [kernels.experts(x[t : t + 1], ids[t : t + 1], shares[t : t + 1], struct) for t in range(33)]
    x[1::2] *= 1e4  # outliers among the others
    together = kernels.experts(x, ids, shares, struct)
    assert all(torch.equal(together[t], alone[t][0]) for t in range(0, 33, 2))


@each_kind
def test_every_level_gives_the_same_bits(kind: Kind) -> None:
    assert KERNELS is not None
    torch.manual_seed(0)
    x = torch.randn(9, 128)
    for terms in (1, 2):
        held = random_weight(kind, (48, 128), terms=terms)
        results = [KERNELS.linear(x, WeightStruct.of(held)) for level in LEVELS if KERNELS.set_level(level)]
        assert all(torch.equal(result, results[0]) for result in results)


@each_kind
def test_a_second_term_is_what_rounding_left_of_the_first(kernels: Library, kind: Kind) -> None:
    """Takes also rows that are tiled with others, and activations much larger than their neighbours."""
    torch.manual_seed(0)
    fine, x = random_weight(kind, (40, 100), terms=2), torch.randn(11, 100)
    x[:, 7] *= 70
    plain = TiledWeight(fine.layout, fine.memory)
    exact = x.double() @ fine.dense().double().T
    errors = [(kernels.linear(x, WeightStruct.of(each)).double() - exact).square().mean() for each in (plain, fine)]
    assert 0 < errors[1] < 1e-4 * errors[0]
    alone = torch.cat([kernels.linear(row[None], WeightStruct.of(fine)) for row in x])
    assert torch.equal(alone, kernels.linear(x, WeightStruct.of(fine)))


@each_kind
def test_what_is_not_finite_stays_so_in_two_terms(kernels: Library, kind: Kind) -> None:
    x = torch.zeros(3, 64)
    x[0, 3], x[1, 40] = torch.inf, torch.nan
    weight = random_weight(kind, (20, 64), terms=2)
    out = kernels.linear(x, WeightStruct.of(weight))
    assert not out[:2].isfinite().any() and not out[2].any()


@pytest.mark.parametrize("hidden", [5, 16, 100])
def test_rms_norm(kernels: Library, hidden: int) -> None:
    torch.manual_seed(hidden)
    x, weight = torch.randn(9, hidden), torch.randn(hidden)
    expected = torch.nn.functional.rms_norm(x.double(), (hidden,), weight.double(), 1e-5)
    torch.testing.assert_close(kernels.rms_norm(x, weight, 1e-5).double(), expected, rtol=1e-5, atol=1e-5)
