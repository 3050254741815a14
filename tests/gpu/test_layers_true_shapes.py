"""Tests a layer's small operations at the sizes of Mixtral 8x7B: 8192 tokens, addresses beyond 32 bits, CUDA graphs.

The router and the sort are also tested at the sizes of models with more experts.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from octavo.model.kernels.gpu.combine import combine, combine_reference
from octavo.model.kernels.gpu.norm import Delta, add_norm, add_norm_reference
from octavo.model.kernels.gpu.rotary import Heads, rotate_and_store, rotate_and_store_reference
from octavo.model.kernels.gpu.router import route, route_reference
from octavo.model.kernels.gpu.sort import sort_pairs, sort_pairs_reference
from octavo.model.kv_cache import LayerCache
from octavo.model.layers import RotaryEmbedding, Rotation
from octavo.model.moe import Router

pytestmark = pytest.mark.cuda
each_count = pytest.mark.parametrize("tokens", [1, 3, 64, 256, 8192])
# Experts, choices and hidden size of Mixtral 8x7B, gpt-oss-20b, OLMoE and Qwen3-30B-A3B.
each_router = pytest.mark.parametrize(
    ("num_experts", "top_k", "hidden"), [(8, 2, 4096), (32, 4, 2880), (64, 8, 2048), (128, 8, 2048)]
)

HIDDEN, EXPERTS, TOP_K, HEADS, DIM = 4096, 8, 2, (32, 8), 128
EPS, DTYPE = 1e-5, torch.bfloat16
ONE_PLACE = {"rtol": 8e-3, "atol": 1e-4}  # the last place of bfloat16
# A normed value is rounded before its weight and behind it. Where the first goes the other way, 2**-7, the second may
# add half a place on either side: 2**-6. That wants a value within 2e-7 of a tie, of places 4e-3 apart and more.
TWO_PLACES, SELDOM = {"rtol": 1.6e-2, "atol": 1e-4}, 2e-4
BLOCK_SIZE, BEYOND_32_BITS = 16, 140_000  # blocks of 16 slots of 1024 elements: 2.29e9 elements


def rows(tokens: int, device: torch.device, hidden: int = HIDDEN) -> Tensor:
    torch.manual_seed(tokens)
    return torch.randn(tokens, hidden, device=device).to(DTYPE)


def norm_weight(device: torch.device, hidden: int = HIDDEN) -> Tensor:
    return (1 + 0.1 * torch.randn(hidden, device=device)).to(DTYPE)


def router(device: torch.device, num_experts: int = EXPERTS, top_k: int = TOP_K, hidden: int = HIDDEN) -> Router:
    return Router((torch.randn(num_experts, hidden, device=device) / hidden**0.5).to(DTYPE), top_k)


def pages(num_blocks: int, device: torch.device) -> LayerCache:
    def slots() -> Tensor:
        return torch.zeros(num_blocks * BLOCK_SIZE + 1, HEADS[1], DIM, dtype=DTYPE, device=device)

    keys, values = slots(), slots()
    shape = (num_blocks, BLOCK_SIZE, HEADS[1], DIM)
    return LayerCache(keys[:-1].view(shape), values[:-1].view(shape), keys, values)


def rotation(tokens: int, device: torch.device) -> Rotation:
    inv_freq = 1.0 / 1e6 ** (torch.arange(0, DIM, 2, dtype=torch.float32, device=device) / DIM)
    return RotaryEmbedding(inv_freq).at(torch.arange(tokens, device=device))


def assert_normed(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, **TWO_PLACES)
    assert (actual != expected).sum() <= 2 + SELDOM * actual.numel()


@each_count
def test_norm(device: torch.device, tokens: int) -> None:
    x, weight = rows(tokens, device), norm_weight(device)
    delta = Delta(x.flip(0))
    total, normed = add_norm(x, delta, weight, EPS)
    expected_total, expected = add_norm_reference(x, delta, weight, EPS)
    assert total.equal(expected_total)
    assert_normed(normed, expected)


@each_count
@each_router
def test_router(device: torch.device, tokens: int, num_experts: int, top_k: int, hidden: int) -> None:
    x, weight = rows(tokens, device, hidden), norm_weight(device, hidden)
    experts, delta = router(device, num_experts, top_k, hidden), Delta(x.flip(0))
    actual = route(x, delta, weight, EPS, experts)
    expected = route_reference(x, delta, weight, EPS, experts)
    assert_normed(actual.normed, expected.normed)
    # A last place of a normed row may decide between two nearly equal experts, or move a share a little.
    same = (actual.ids == expected.ids).all(-1)
    assert same.float().mean() >= 1 - 1e-3 * top_k
    torch.testing.assert_close(actual.weights[same], expected.weights[same], rtol=1e-3, atol=1e-3)


@each_count
@each_router
@pytest.mark.parametrize("tile", [8, 64])
def test_sort(device: torch.device, tokens: int, num_experts: int, top_k: int, hidden: int, tile: int) -> None:
    torch.manual_seed(tokens)
    ids = torch.rand(tokens, num_experts, device=device).topk(top_k).indices.int()
    actual, expected = sort_pairs(ids, num_experts, tile), sort_pairs_reference(ids, num_experts, tile)
    assert actual.order.equal(expected.order)
    assert actual.tile_expert.equal(expected.tile_expert)
    assert actual.tile_start.equal(expected.tile_start)
    assert actual.tile_end.equal(expected.tile_end)


@each_count
def test_rotary(device: torch.device, tokens: int) -> None:
    qkv = rows(tokens, device, (HEADS[0] + 2 * HEADS[1]) * DIM)
    slots = torch.randperm(8192, device=device)[:tokens]
    slots[tokens // 2 :: 7] = -1
    cache, expected_cache = (pages(8192 // BLOCK_SIZE, device) for _ in range(2))
    q = rotate_and_store(qkv, rotation(tokens, device), slots, cache, Heads(*HEADS))
    expected = rotate_and_store_reference(qkv, rotation(tokens, device), slots, expected_cache, Heads(*HEADS))
    torch.testing.assert_close(q, expected, **ONE_PLACE)
    torch.testing.assert_close(cache.key_slots, expected_cache.key_slots, **ONE_PLACE)
    assert cache.value_slots.equal(expected_cache.value_slots)


def test_slots_beyond_32_bits(device: torch.device) -> None:
    """Reads pages of 9.2 GB."""
    qkv = rows(2, device, (HEADS[0] + 2 * HEADS[1]) * DIM)
    cache = pages(BEYOND_32_BITS, device)
    last = BEYOND_32_BITS * BLOCK_SIZE - 1
    rotate_and_store(qkv, rotation(2, device), torch.tensor([last, 1], device=device), cache, Heads(*HEADS))
    assert cache.values[-1, -1].equal(qkv[0, -HEADS[1] * DIM :].view(HEADS[1], DIM))
    assert cache.values[0, 1].equal(qkv[1, -HEADS[1] * DIM :].view(HEADS[1], DIM))


@each_count
@pytest.mark.parametrize("splits", [1, 4])
def test_combine(device: torch.device, tokens: int, splits: int) -> None:
    x, weight = rows(tokens, device), norm_weight(device)
    partials = torch.randn(splits, tokens * TOP_K, HIDDEN, device=device)
    weights = torch.rand(tokens, TOP_K, device=device).softmax(-1)
    total, normed = combine(partials, weights, x, weight, EPS)
    expected = combine_reference(partials, weights, x, None, EPS)[0]
    torch.testing.assert_close(total, expected, **ONE_PLACE)
    assert normed is not None
    assert_normed(normed, add_norm_reference(total, None, weight, EPS)[1])


def test_partials_beyond_32_bits(device: torch.device) -> None:
    """Looks at the last row of 8.7 GB of partials."""
    splits, tokens = 8, 33_000
    x = torch.zeros(tokens, HIDDEN, dtype=DTYPE, device=device)
    partials = torch.zeros(splits, tokens * TOP_K, HIDDEN, device=device)
    partials[-1, -1] = torch.arange(HIDDEN, device=device)
    total, _ = combine(partials, torch.ones(tokens, TOP_K, device=device), x, None, EPS)
    assert total[-1].equal(partials[-1, -1].to(DTYPE))
    assert not total[:-1].any()


@each_count
@each_router
def test_a_row_is_the_same_in_any_company(
    device: torch.device, tokens: int, num_experts: int, top_k: int, hidden: int
) -> None:
    """Computes the last row alone and in company: rows that a graph or another request adds must not change it."""
    x, weight = rows(tokens, device, hidden), norm_weight(device, hidden)
    experts = router(device, num_experts, top_k, hidden)
    together, alone = (route(some, None, weight, EPS, experts) for some in (x, x[-1:].clone()))
    assert together.normed[-1:].equal(alone.normed)
    assert together.ids[-1:].equal(alone.ids)
    assert together.weights[-1:].equal(alone.weights)


@pytest.mark.parametrize(("num_experts", "top_k"), [(EXPERTS, TOP_K), (128, 8)])
@pytest.mark.parametrize("tokens", [1, 64, 256])
def test_all_of_it_can_be_captured(device: torch.device, tokens: int, num_experts: int, top_k: int) -> None:
    """Captures one graph of all launches; replayed with other numbers in the same places, it computes from them."""
    weight, experts, turn = norm_weight(device), router(device, num_experts, top_k), rotation(tokens, device)
    qkv, x = rows(tokens, device, (HEADS[0] + 2 * HEADS[1]) * DIM), rows(tokens, device)
    slots, cache = torch.arange(tokens, device=device), pages(8192 // BLOCK_SIZE, device)
    partials = torch.randn(4, tokens * top_k, HIDDEN, device=device)

    def step() -> tuple[Tensor, ...]:
        total, normed = add_norm(x, Delta(x), weight, EPS)
        q = rotate_and_store(qkv, turn, slots, cache, Heads(*HEADS))
        routed = route(total, Delta(normed), weight, EPS, experts)
        pairs = sort_pairs(routed.ids, num_experts, 16)
        combined, _ = combine(partials, routed.weights, routed.x, weight, EPS)
        return q, pairs.order, pairs.tile_expert, pairs.tile_start, pairs.tile_end, combined

    replay, results = captured(step)
    for tensor in (x, qkv, partials):
        tensor.copy_(torch.randn_like(tensor))
    replay()
    for actual, expected in zip(results, step(), strict=True):
        assert actual.equal(expected)


def captured(step: Callable[[], tuple[Tensor, ...]]) -> tuple[Callable[[], None], tuple[Tensor, ...]]:
    step()  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()
    return graph.replay, results
