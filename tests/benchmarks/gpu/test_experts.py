"""A layer's experts are compared with float64 and with torch's grouped product, which say the same."""

import pytest
import torch

from benchmarks.gpu.experts import RoutedTokens, exact, grouped
from benchmarks.gpu.inputs import SMALL, experts_of
from benchmarks.gpu.run import difference
from octavo.model.ops.experts import experts_reference

CPU = torch.device("cpu")


@pytest.mark.parametrize("tokens", [1, 7])
def test_all_of_them_say_the_same(tokens: int) -> None:
    layer = experts_of(SMALL, torch.float32, CPU)
    routed = RoutedTokens.random(SMALL, tokens, torch.float32, CPU)
    expected = routed.x + experts_reference(routed.x, routed.ids.long(), routed.weights, layer)
    assert difference(expected, exact(routed, layer)) < 1e-6
    assert difference(grouped(routed.x, routed.ids, routed.weights, layer), exact(routed, layer)) < 1e-6


def test_random_tokens_choose_different_experts_each_and_are_the_same_every_time() -> None:
    routed, again = (RoutedTokens.random(SMALL, 50, torch.float32, CPU) for _ in range(2))
    assert routed.ids.equal(again.ids) and routed.x.equal(again.x)
    assert all(len(set(ids)) == SMALL.num_experts_per_tok for ids in routed.ids.tolist())
    assert torch.allclose(routed.weights.sum(-1), torch.ones(50))
    assert routed.touched() == list(range(SMALL.num_experts))
