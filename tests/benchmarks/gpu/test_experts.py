"""What a layer's experts are compared with: float64, and torch's grouped product."""

import pytest
import torch

from benchmarks.gpu.compare import difference
from benchmarks.gpu.experts import exact, grouped
from benchmarks.gpu.inputs import SMALL, experts_of
from benchmarks.gpu.products import Load
from octavo.model.ops.experts import experts_reference

CPU = torch.device("cpu")


@pytest.mark.parametrize("tokens", [1, 7])
def test_all_of_them_say_the_same(tokens: int) -> None:
    layer = experts_of(SMALL, torch.float32, CPU)
    load = Load.random(SMALL, tokens, torch.float32, CPU)
    expected = load.x + experts_reference(load.x, load.ids.long(), load.weights, layer)
    assert difference(expected, exact(load, layer)) < 1e-6
    assert difference(grouped(load.x, load.ids, load.weights, layer), exact(load, layer)) < 1e-6


def test_a_load_chooses_different_experts_for_each_token_and_is_the_same_every_time() -> None:
    load, again = (Load.random(SMALL, 50, torch.float32, CPU) for _ in range(2))
    assert load.ids.equal(again.ids) and load.x.equal(again.x)
    assert all(len(set(ids)) == SMALL.num_experts_per_tok for ids in load.ids.tolist())
    assert torch.allclose(load.weights.sum(-1), torch.ones(50))
    assert load.touched() == list(range(SMALL.num_experts))
