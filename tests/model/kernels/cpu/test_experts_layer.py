"""Compares the experts' half of a layer in C with the plain one, for every word of a router and of an expert."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from octavo.model.families import Swiglu
from octavo.model.kernels.cpu.decoder import experts_struct
from octavo.model.kernels.cpu.library import Library, library
from octavo.model.kernels.cpu.ops import CpuOps
from octavo.model.layers import RMSNorm
from octavo.model.moe import MoEBlock, Router, SharedExpert
from octavo.model.ops.attention import attention, plan_attention
from octavo.model.ops.experts import experts_reference
from octavo.model.ops.linear import linear_reference
from octavo.model.ops.seams import TORCH, Ops
from octavo.model.routes import Routing
from octavo.model.weights.forms import ExpertWeights
from octavo.model.weights.kinds import INT8
from tests.model.weights.any_kind import NAMED, random_weight

pytestmark = pytest.mark.skipif(library() is None, reason="the C kernels were not built")

HIDDEN, WIDE = 72, 40  # No block, panel or register divides them.
REFERENCE = Ops(plan_attention, attention, experts_reference, linear_reference)
GPT_OSS = Swiglu(alpha=1.702, limit=0.3, shift=1.0)  # whose limit some of these small activations reach


def random_block(count: int, top_k: int, ordered: bool = False) -> MoEBlock:
    """Returns a router and experts; if they are ordered, every second one has an order of its own."""
    orders = [ordered and expert % 2 == 0 for expert in range(count)]
    gate_up = tuple(random_weight(INT8, (2 * WIDE, HIDDEN), interleaved=True, ordered=each) for each in orders)
    experts = ExpertWeights(gate_up, tuple(random_weight(INT8, (HIDDEN, WIDE)) for _ in range(count)))
    return MoEBlock(Router(torch.randn(count, HIDDEN) / HIDDEN**0.5, top_k), experts)


def random_norm() -> RMSNorm:
    return RMSNorm.create(0.5 + torch.rand(HIDDEN), 1e-5)


def run(kernels: Library, x: Tensor, block: MoEBlock, norm: RMSNorm) -> tuple[Tensor, Tensor, Tensor]:
    """Returns x [T, H] with what the block adds, and the ids [T, k] and weights [T, k] that its router chose."""
    out, struct = x.clone(), experts_struct(block, norm)
    assert struct is not None
    return out, *kernels.experts_layer(out, struct)


def compare(kernels: Library, block: MoEBlock, tokens: int) -> None:
    norm, x = random_norm(), torch.randn(tokens, HIDDEN)
    actual, ids, weights = run(kernels, x, block, norm)
    if block.router is not None:
        chosen = block.router(norm(x), REFERENCE)
        assert torch.equal(ids, chosen[1])
        torch.testing.assert_close(weights, chosen[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(actual, x + block(norm(x), REFERENCE, Routing()), rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("tokens", [1, 2, 40])
@pytest.mark.parametrize(("count", "top_k"), [(3, 2), (8, 1), (8, 8), (66, 8)])
def test_any_number_of_experts(kernels: Library, count: int, top_k: int, tokens: int) -> None:
    torch.manual_seed(count + tokens)
    compare(kernels, random_block(count, top_k), tokens)


ROUTERS = {
    "a bias": {"bias": torch.linspace(-1, 1, 9)},
    "not normalised": {"normalise": False},
    "a scale": {"scale": 0.22},
    "everything": {"bias": torch.linspace(1, -1, 9), "normalise": False, "scale": 2.5},
}


@pytest.mark.parametrize("words", ROUTERS.values(), ids=ROUTERS)
def test_any_router(kernels: Library, words: dict[str, object]) -> None:
    torch.manual_seed(0)
    block = random_block(9, 3)
    assert block.router is not None
    compare(kernels, replace(block, router=replace(block.router, **words)), 7)


@pytest.mark.parametrize("biased", [False, True], ids=["no bias", "biases"])
@pytest.mark.parametrize("activation", [Swiglu(), Swiglu(alpha=1.702), Swiglu(limit=0.3), Swiglu(shift=1.0), GPT_OSS])
def test_any_expert(kernels: Library, activation: Swiglu, biased: bool) -> None:
    torch.manual_seed(0)
    block = random_block(5, 2)
    biases = (torch.randn(5, 2 * WIDE), torch.randn(5, HIDDEN)) if biased else (None, None)
    experts = replace(block.experts, gate_up_bias=biases[0], down_bias=biases[1], activation=activation)
    compare(kernels, replace(block, experts=experts), 7)


@pytest.mark.parametrize("tokens", [1, 2, 40])
def test_inputs_in_an_order_of_their_own(kernels: Library, tokens: int) -> None:
    torch.manual_seed(tokens)
    compare(kernels, random_block(6, 3, ordered=True), tokens)


def unlike_any_that_the_kernels_take(block: MoEBlock) -> list[MoEBlock]:
    experts, router = block.experts, block.router
    assert router is not None
    shared = SharedExpert(ExpertWeights(experts.gate_up[:1], experts.down[:1]), torch.randn(1, HIDDEN))
    ordered = tuple(random_weight(INT8, (HIDDEN, WIDE), ordered=True) for _ in experts.down)
    return [
        replace(block, shared=shared),
        replace(block, router=replace(router, jitter=0.01)),
        replace(block, experts=replace(experts, down=ordered)),
    ]


@pytest.mark.parametrize("which", [0, 1, 2], ids=["a shared expert", "a sparse mixer", "an order of the inner width"])
def test_what_the_kernels_do_not_take_is_left_to_the_plain_block(kernels: Library, which: int) -> None:
    torch.manual_seed(0)
    block, x = unlike_any_that_the_kernels_take(random_block(3, 2))[which], torch.randn(4, HIDDEN)
    assert experts_struct(block, random_norm()) is None
    # Its experts run in C all the same, if each matrix is one that the kernels take.
    expected = block(x, REFERENCE, Routing())
    torch.testing.assert_close(block(x, CpuOps(kernels, TORCH).ops(), Routing()), expected, rtol=5e-2, atol=5e-2)


def test_the_seam_takes_all_of_it_too(kernels: Library) -> None:
    torch.manual_seed(0)
    block, x = random_block(6, 3, ordered=True), torch.randn(9, HIDDEN)
    biases = torch.randn(6, 2 * WIDE), torch.randn(6, HIDDEN)
    experts = replace(block.experts, gate_up_bias=biases[0], down_bias=biases[1], activation=GPT_OSS)
    ids, weights = torch.stack([torch.randperm(6)[:3] for _ in range(9)]), torch.rand(9, 3)
    actual = CpuOps(kernels, TORCH).experts(x, ids, weights, experts)
    torch.testing.assert_close(actual, experts_reference(x, ids, weights, experts), rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("ordered", [False, True])
def test_a_row_is_the_same_bits_whatever_comes_with_it(kernels: Library, ordered: bool) -> None:
    torch.manual_seed(0)
    block, norm, x = random_block(10, 3, ordered), random_norm(), torch.randn(70, HIDDEN)
    biases = {"gate_up_bias": torch.randn(10, 2 * WIDE), "down_bias": torch.randn(10, HIDDEN)}
    block = replace(block, experts=replace(block.experts, **biases, activation=GPT_OSS))
    alone = torch.cat([run(kernels, row[None], block, norm)[0] for row in x])
    x[1::2] *= 1e4  # outliers among the others
    assert torch.equal(run(kernels, x, block, norm)[0][::2], alone[::2])


def test_the_lower_id_wins_a_tie(kernels: Library) -> None:
    torch.manual_seed(0)
    block = random_block(7, 3)
    assert block.router is not None
    block.router.weight[:] = 0
    _, ids, _ = run(kernels, torch.randn(2, HIDDEN), block, random_norm())
    assert ids.tolist() == [[0, 1, 2]] * 2


def test_what_is_not_finite_does_not_vanish_behind_a_limit(kernels: Library) -> None:
    torch.manual_seed(0)
    block, x = random_block(4, 2), torch.randn(3, HIDDEN)
    block = replace(block, experts=replace(block.experts, activation=GPT_OSS))
    x[1, 5] = torch.nan
    out, *_ = run(kernels, x, block, random_norm())
    assert out.isfinite().all(-1).tolist() == [True, False, True]


@pytest.mark.parametrize("name", ["int4", "gptq, groups of 128", "mxfp4"])
def test_every_level_gives_the_same_bits(name: str) -> None:
    kernels = library()
    assert kernels is not None
    torch.manual_seed(0)
    gate_up = tuple(random_weight(NAMED[name], (2 * WIDE, HIDDEN), interleaved=True) for _ in range(6))
    experts = ExpertWeights(gate_up, tuple(random_weight(NAMED[name], (HIDDEN, WIDE)) for _ in range(6)))
    experts = replace(experts, gate_up_bias=torch.randn(6, 2 * WIDE), activation=GPT_OSS)
    block = MoEBlock(Router(torch.randn(6, HIDDEN), 2, normalise=False), experts)
    norm, x = random_norm(), torch.randn(9, HIDDEN)
    results = [run(kernels, x, block, norm)[0] for level in kernels.levels() if kernels.set_level(level)]
    assert all(torch.equal(result, results[0]) for result in results)
