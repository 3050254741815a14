"""Compares the sort with its reference, and checks what every sort by expert must be."""

import pytest
import torch

from octavo.model.kernels.gpu import sort
from octavo.model.kernels.gpu.sort import SortedPairs, max_tiles, sort_pairs, sort_pairs_reference


def random_ids(tokens: int, top_k: int, num_experts: int) -> torch.Tensor:
    """Returns ragged choices: the first experts are chosen more often than the last."""
    odds = torch.linspace(3, 0.1, num_experts).softmax(0).expand(tokens, -1)
    return odds.multinomial(top_k).int()


def assert_same(actual: SortedPairs, expected: SortedPairs) -> None:
    for name in ("order", "tile_expert", "tile_start", "tile_end"):
        got, wanted = getattr(actual, name), getattr(expected, name)
        assert got.dtype == torch.int32
        assert got.tolist() == wanted.tolist(), name


@pytest.mark.parametrize("tile", [1, 8, 16])
@pytest.mark.parametrize(("num_experts", "top_k"), [(1, 1), (8, 1), (8, 2), (9, 2), (32, 4), (128, 8)])
@pytest.mark.parametrize("tokens", [1, 3, 64, 65])
def test_against_the_reference(device: torch.device, tokens: int, num_experts: int, top_k: int, tile: int) -> None:
    """65 tokens of two choices are more than the smaller block of pairs; those of eight are part of the larger one."""
    torch.manual_seed(tokens)
    ids = random_ids(tokens, top_k, num_experts).to(device)
    assert_same(sort_pairs(ids, num_experts, tile), sort_pairs_reference(ids, num_experts, tile))


@pytest.mark.parametrize(("tokens", "num_experts", "top_k"), [(512, 8, 2), (1100, 8, 2), (129, 128, 8)])
def test_many_blocks(device: torch.device, tokens: int, num_experts: int, top_k: int) -> None:
    """Sorts exactly one block of 1024 pairs, two with a third that is not full, and two of many experts."""
    torch.manual_seed(0)
    ids = random_ids(tokens, top_k, num_experts).to(device)
    assert_same(sort_pairs(ids, num_experts, 16), sort_pairs_reference(ids, num_experts, 16))


@pytest.mark.parametrize("num_experts", [20, 100, 200])
def test_counts_and_tiles_are_taken_in_pieces(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, num_experts: int
) -> None:
    """Takes 8, 2 or 1 at once, of four blocks and of more tiles; one expert's pairs are in all blocks."""
    monkeypatch.setattr(sort, "CELLS", 1)
    ids = random_ids(1100, 3, num_experts).to(device)
    ids[:, 2] = num_experts - 1
    assert_same(sort_pairs(ids, num_experts, 64), sort_pairs_reference(ids, num_experts, 64))


@pytest.mark.parametrize("only", [0, 3, 7])
def test_all_pairs_of_one_expert(device: torch.device, only: int) -> None:
    pairs = sort_pairs(torch.full((33, 1), only, dtype=torch.int32, device=device), 8, 16)
    assert pairs.order.tolist() == list(range(33))
    assert pairs.tile_expert.tolist() == [only] * 3 + [-1] * (max_tiles(33, 8, 16) - 3)
    assert pairs.tile_start.tolist()[:3] == [0, 16, 32]
    assert pairs.tile_end.tolist()[:3] == [16, 32, 33]


def test_the_bound_is_reached(device: torch.device) -> None:
    """Every expert's last tile holds one pair."""
    loads = [9] * 8
    ids = torch.arange(8, dtype=torch.int32).repeat_interleave(torch.tensor(loads))[:, None].to(device)
    pairs = sort_pairs(ids, 8, 8)
    assert (pairs.tile_expert >= 0).sum() == 16
    assert max_tiles(72, 8, 8) == 17
    ids = ids[::9].contiguous()  # one pair an expert
    assert sort_pairs(ids, 8, 8).tile_expert.tolist() == list(range(8))


@pytest.mark.parametrize("seed", range(12))
def test_properties(device: torch.device, seed: int) -> None:
    """The order is a sorted, stable permutation, and each place is in exactly one tile, that of its pair's expert."""
    torch.manual_seed(seed)
    tokens, num_experts, tile = int(torch.randint(1, 200, ())), int(torch.randint(1, 12, ())), 1 << seed % 6
    top_k = min(2, num_experts)
    ids = random_ids(tokens, top_k, num_experts).to(device)
    pairs = sort_pairs(ids, num_experts, tile)

    order, experts = pairs.order.tolist(), ids.flatten().tolist()
    assert sorted(order) == list(range(tokens * top_k))
    keys = [(experts[pair], pair) for pair in order]
    assert keys == sorted(keys)

    table = zip(pairs.tile_expert.tolist(), pairs.tile_start.tolist(), pairs.tile_end.tolist(), strict=True)
    used = [row for row in table if row[0] >= 0]
    assert all(0 < end - start <= tile for _, start, end in used)
    assert [place for _, start, end in used for place in range(start, end)] == list(range(tokens * top_k))
    assert all(experts[order[place]] == expert for expert, start, end in used for place in range(start, end))
