"""Tests the router's choice and weights, and the sum of the experts' outputs."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from octavo.model.moe import MoEBlock, Router
from octavo.model.ops.attention import attention, plan_attention
from octavo.model.ops.experts import experts, experts_reference
from octavo.model.ops.linear import linear
from octavo.model.ops.seams import Ops
from octavo.model.routes import Routing
from octavo.model.weights.forms import ExpertWeights

OPS = Ops(plan_attention, attention, experts, linear)


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_weights_are_the_softmax_over_the_chosen(top_k: int) -> None:
    torch.manual_seed(0)
    x, gate = torch.randn(7, 16), torch.randn(8, 16)
    weights, ids = Router(gate, top_k)(x, OPS)
    logits = x @ gate.T
    best, expected_ids = logits.topk(top_k)
    assert torch.equal(ids, expected_ids)
    # Renormalising a softmax over all is the softmax over the chosen.
    torch.testing.assert_close(weights, best.softmax(-1))
    torch.testing.assert_close(weights.sum(-1), torch.ones(7))


def test_one_expert_per_token_has_the_weight_one() -> None:
    weights, _ = Router(torch.randn(4, 8), 1)(torch.randn(3, 8), OPS)
    assert torch.equal(weights, torch.ones(3, 1))


def test_sixteen_bit_activations_are_weighted_in_float32() -> None:
    weights, _ = Router(torch.randn(4, 8).bfloat16(), 2)(torch.randn(3, 8).bfloat16(), OPS)
    assert weights.dtype == torch.float32


def test_the_seam_of_the_experts_sees_what_the_router_chose() -> None:
    torch.manual_seed(0)
    seen: list[tuple[Tensor, Tensor]] = []

    def watching(x: Tensor, ids: Tensor, weights: Tensor, expert_weights: ExpertWeights) -> Tensor:
        seen.append((ids, weights))
        return experts(x, ids, weights, expert_weights)

    weights = ExpertWeights(torch.randn(4, 12, 8).unbind(), torch.randn(4, 8, 6).unbind())
    router = Router(torch.randn(4, 8), 2)
    block, x = MoEBlock(router, weights), torch.randn(3, 8)
    out = block(x, replace(OPS, experts=watching), Routing())
    routed, ids = router(x, OPS)
    ((seen_ids, seen_weights),) = seen
    assert torch.equal(seen_ids, ids) and torch.equal(seen_weights, routed)
    torch.testing.assert_close(out, experts_reference(x, ids, routed, weights), rtol=1e-4, atol=1e-4)
    assert torch.equal(out, block(x, OPS, Routing()))


@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_only_expert_of_a_dense_layer_always_runs(tokens: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    gate_up, down = torch.randn(12, 8, dtype=dtype) / 3, torch.randn(8, 6, dtype=dtype) / 3
    block = MoEBlock(None, ExpertWeights((gate_up,), (down,)))
    x = torch.randn(tokens, 8, dtype=dtype)
    gate, up = (x @ gate_up.T).chunk(2, dim=-1)
    torch.testing.assert_close(block(x, OPS, Routing()), (torch.nn.functional.silu(gate) * up) @ down.T)
