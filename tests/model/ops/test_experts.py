"""Compares experts with its reference: ragged shares, experts without tokens, one token, every weight type."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from octavo.model.ops.experts import experts, experts_reference
from octavo.model.weights.forms import ExpertWeights
from octavo.model.weights.fp16 import Fp16Weight
from octavo.model.weights.kinds import INT4, INT8, Kind
from octavo.model.weights.tiles import TiledWeight
from tests.model.marks import needs_fbgemm

HIDDEN, WIDE = 24, 20


def random_experts(count: int, dtype: torch.dtype = torch.float32) -> ExpertWeights:
    gate_up = torch.randn(count, 2 * WIDE, HIDDEN) / HIDDEN**0.5
    down = torch.randn(count, HIDDEN, WIDE) / WIDE**0.5
    return ExpertWeights(gate_up.to(dtype).unbind(), down.to(dtype).unbind())


def packed(weights: ExpertWeights) -> ExpertWeights:
    def pack(matrices: tuple[Tensor, ...]) -> tuple[Fp16Weight, ...]:
        return tuple(Fp16Weight.pack(matrix.contiguous()) for matrix in matrices)

    return ExpertWeights(pack(weights.gate_up), pack(weights.down))


def random_routing(tokens: int, top_k: int, among: int) -> tuple[Tensor, Tensor]:
    """Returns ids that differ within each row, like a router's, and weights."""
    ids = torch.stack([torch.randperm(among)[:top_k] for _ in range(tokens)])
    return ids, torch.rand(tokens, top_k).softmax(-1)


@settings(derandomize=True, max_examples=40, deadline=None)
@given(tokens=st.integers(1, 19), count=st.integers(1, 9), data=st.data())
def test_any_shape(tokens: int, count: int, data: st.DataObject) -> None:
    among = data.draw(st.integers(1, count), label="experts that are used at all")
    top_k = data.draw(st.integers(1, among), label="k")
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    weights = random_experts(count)
    x = torch.randn(tokens, HIDDEN)
    ids, shares = random_routing(tokens, top_k, among)
    expected = experts_reference(x, ids, shares, weights)
    torch.testing.assert_close(experts(x, ids, shares, weights), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tokens", [1, 2, 33])
def test_bfloat16(tokens: int) -> None:
    torch.manual_seed(0)
    weights = random_experts(8, torch.bfloat16)
    x = torch.randn(tokens, HIDDEN).bfloat16()
    ids, shares = random_routing(tokens, 2, 8)
    actual = experts(x, ids, shares, weights)
    assert actual.dtype == torch.bfloat16
    expected = experts_reference(x.float(), ids, shares, weights)
    torch.testing.assert_close(actual.float(), expected, rtol=3e-2, atol=3e-2)


@needs_fbgemm
@pytest.mark.parametrize("tokens", [1, 2, 33])
def test_packed_float16(tokens: int) -> None:
    torch.manual_seed(0)
    weights = packed(random_experts(8))
    x = torch.randn(tokens, HIDDEN)
    ids, shares = random_routing(tokens, 2, 8)
    expected = experts_reference(x, ids, shares, weights)
    torch.testing.assert_close(experts(x, ids, shares, weights), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [INT8, INT4])
@pytest.mark.parametrize("tokens", [1, 2, 33])
def test_quantised(kind: Kind, tokens: int) -> None:
    torch.manual_seed(0)
    plain = random_experts(8)
    gate_up = tuple(TiledWeight.pack(kind, matrix, interleaved=True) for matrix in plain.gate_up)
    weights = ExpertWeights(gate_up, tuple(TiledWeight.pack(kind, matrix) for matrix in plain.down))
    rounded = ExpertWeights(*(tuple(w.dense() for w in side) for side in (weights.gate_up, weights.down)))
    x = torch.randn(tokens, HIDDEN)
    ids, shares = random_routing(tokens, 2, 8)
    expected = experts_reference(x, ids, shares, rounded)
    torch.testing.assert_close(experts(x, ids, shares, weights), expected, rtol=1e-5, atol=1e-5)
    # The reference also rounds the activations, to 1 in 254 of the largest of 32.
    error = (experts_reference(x, ids, shares, weights) - expected).square().mean().sqrt()
    assert error < 0.02 * expected.square().mean().sqrt()


def test_a_token_does_not_depend_on_its_neighbours() -> None:
    torch.manual_seed(0)
    weights = random_experts(8)
    x = torch.randn(12, HIDDEN)
    ids, shares = random_routing(12, 4, 8)
    together = experts(x, ids, shares, weights)
    for token in range(12):
        row = slice(token, token + 1)
        torch.testing.assert_close(experts(x[row], ids[row], shares[row], weights), together[row])


def test_every_token_to_one_expert() -> None:
    torch.manual_seed(0)
    weights = random_experts(4)
    x = torch.randn(6, HIDDEN)
    ids, shares = torch.full((6, 1), 2), torch.ones(6, 1)
    torch.testing.assert_close(experts(x, ids, shares, weights), experts_reference(x, ids, shares, weights))
