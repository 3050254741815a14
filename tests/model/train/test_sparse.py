"""The mixture at dense cost equals one of merged experts, and the routers' losses are those of their papers."""

import pytest
import torch
from torch import Tensor

from octavo.model.moe import MoEBlock, Router
from octavo.model.ops.invariant import OPS, Invariance
from octavo.model.routes import Routing
from octavo.model.train.corpus import generator
from octavo.model.train.deltas import Delta, by_layer, merged, new_delta
from octavo.model.train.dense import DenseModel
from octavo.model.train.sparse import Routed, SparseModel, at_random, balance_loss, domain_loss, top, z_loss
from octavo.model.weights.forms import ExpertWeights
from tests.model.train.training import dense_checkpoint, dense_model

EXPERTS = 3  # beside the original


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> DenseModel:
    return dense_model(dense_checkpoint(tmp_path_factory.mktemp("dense") / "dense"))


def random_experts(model: DenseModel) -> Delta:
    random = generator(0, "test")
    shapes = {name: each.shape for name, each in new_delta(model.config, 2, random).items()}
    return {name: torch.randn(EXPERTS, *shape, generator=random) * 0.3 for name, shape in shapes.items()}


def merged_block(model: DenseModel, experts: Delta, layer: int, router: Tensor, top_k: int) -> MoEBlock:
    """Returns the reference: whole experts behind the router that the server runs."""
    gate, up = model.gate_up(layer).chunk(2)
    gate_up, down = [model.gate_up(layer)], [model.down(layer)]
    for number in range(EXPERTS):
        own = by_layer({name: each[number] for name, each in experts.items()})[layer]
        gate_up.append(torch.cat((merged(gate, own, "gate"), merged(up, own, "up"))))
        down.append(merged(model.down(layer), own, "down"))
    return MoEBlock(Router(router, top_k), ExpertWeights(tuple(gate_up), tuple(down)))


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_it_equals_merged_experts(model: DenseModel, top_k: int) -> None:
    experts, x = random_experts(model), torch.randn(40, 32, generator=generator(1))
    routers = torch.randn(2, 1 + EXPERTS, 32, generator=generator(2))
    seen: list[Routed] = []
    compute = SparseModel.of(model, experts, top_k).feed_forward(routers, seen)
    for layer in range(2):
        block = merged_block(model, experts, layer, routers[layer], top_k)
        expected = block(x, OPS[Invariance.NONE], Routing())
        torch.testing.assert_close(compute(layer, x), expected, rtol=1e-4, atol=1e-4)
        weights, ids = block.router(x, OPS[Invariance.NONE])
        assert torch.equal(seen[layer].ids, ids) and set(ids.flatten().tolist()) == set(range(1 + EXPERTS))
        torch.testing.assert_close(seen[layer].weights, weights)


def test_gradients_reach_the_routers_through_the_weights(model: DenseModel) -> None:
    routers = torch.randn(2, 1 + EXPERTS, 32, generator=generator(2), requires_grad=True)
    compute = SparseModel.of(model, random_experts(model), 2).feed_forward(routers, [])
    x = torch.randn(40, 32, generator=generator(1))
    (gradient,) = torch.autograd.grad(compute(1, x).square().sum(), [routers])
    assert gradient[0].abs().max() == 0 and (gradient[1].abs().amax(dim=1) > 0).all()


def routed(logits: Tensor, top_k: int = 2) -> Routed:
    return Routed(logits, *top(logits, top_k))


def test_balance_is_one_when_perfect_and_the_number_of_experts_when_there_is_none() -> None:
    even = routed(torch.eye(4).repeat(8, 1) * 50, top_k=1)
    assert balance_loss(even).item() == pytest.approx(1.0)
    one = routed(torch.tensor([50.0, 0, 0, 0]).repeat(8, 1), top_k=1)
    assert balance_loss(one).item() == pytest.approx(4.0)


@pytest.mark.oracle
def test_balance_is_that_of_transformers_over_k() -> None:
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    logits = torch.randn(50, 6, generator=generator(0))
    theirs = load_balancing_loss_func((logits,), num_experts=6, top_k=2)
    assert balance_loss(routed(logits)).item() == pytest.approx(theirs.item() / 2, rel=1e-5)


def test_z_loss_is_the_mean_square_of_log_sums() -> None:
    logits = torch.tensor([[0.0, 0.0], [1.0, 3.0]])
    expected = (torch.tensor(2.0).log() ** 2 + logits[1].exp().sum().log() ** 2) / 2
    assert z_loss(routed(logits)).item() == pytest.approx(expected.item(), rel=1e-6)


def test_domain_loss_is_least_where_tokens_go_to_their_experts() -> None:
    targets = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    good = domain_loss(routed(torch.tensor([[9.0, 0.0], [0.0, 0.0]])), targets).item()
    bad = domain_loss(routed(torch.tensor([[0.0, 9.0], [0.0, 0.0]])), targets).item()
    assert good == pytest.approx(0.5 * 0.6931, abs=1e-3) and bad > good + 4


def test_a_random_choice_is_even_and_repeats_with_its_seed() -> None:
    logits = torch.tensor([9.0, 0, 0, 0]).repeat(4000, 1)
    weights, ids = at_random(generator(0))(logits, 2)
    assert (weights == 0.5).all() and (ids[:, 0] != ids[:, 1]).all()
    shares = torch.bincount(ids.flatten()) / ids.numel()
    assert (shares - 0.25).abs().max() < 0.02
    assert torch.equal(ids, at_random(generator(0))(logits, 2)[1])
