"""Sorts (token, choice) pairs by expert, with a stable counting sort, and cuts each expert's range into tiles.

Pair p = t * k + c is token t's choice c. This is an example with two choices of three experts, and tiles of two pairs:

    ids         [[2, 0],      pair    0  1  2  3  4  5      order        1  2  3  4  0  5
                 [0, 1],      expert  2  0  0  1  1  2      expert       0  0  1  1  2  2
                 [1, 2]]
                                          tile_expert  0  1  2 -1 -1        there can be 3 + 6 // 2 = 5 tiles;
                                          tile_start   0  2  4 -1 -1        only the device knows how many are used
                                          tile_end     2  4  6 -1 -1

The launch is the only floor: 128 pairs are 512 bytes, and even 16,384 are 64 KB. The work is a chain of dependent
operations. So it is one program, which needs neither atomics nor a second launch: the order is the same in every run,
and equal pairs meet in the same tiles. Padding rows of a CUDA graph's bucket are sorted like others. They are equal, so
all of them together read at most two experts that nobody else chose.

The router's last program could sort as well, since the result depends on the ids alone. This would save a launch, some
1 us of a layer's 300 and more. But it would need a counter that every forward pass must find at zero, and fences; if
one of these were missing, no test would show it.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_CELLS = 8192  # cells of the table pairs x experts that are summed at a time; they take 32 registers a thread


@dataclass(frozen=True, slots=True)
class SortedPairs:
    """SortedPairs are all (token, choice) pairs in the order of their experts, and the tiles that programs work on."""

    order: Tensor  # [P] int32, the pair t * k + c at each place
    tile_expert: Tensor  # [N] int32, the expert of each tile; -1: no work
    tile_start: Tensor  # [N] int32; places start : end of order belong to one expert; -1 : -1 without work
    tile_end: Tensor  # [N] int32


def max_tiles(num_pairs: int, num_experts: int, tile: int) -> int:
    """Returns the most tiles that any distribution of pairs can take; each expert's last one may be almost empty."""
    return min(num_pairs, num_experts + num_pairs // tile)


def sort_pairs(ids: Tensor, num_experts: int, tile: int) -> SortedPairs:
    """Sorts the pairs of ids [T, k] int32, which are from 0 to num_experts - 1; `tile` is the most pairs of a tile."""
    num_pairs = ids.numel()
    tiles = max_tiles(num_pairs, num_experts, tile)
    sorted_pairs = SortedPairs(
        ids.new_empty(num_pairs), ids.new_empty(tiles), ids.new_empty(tiles), ids.new_empty(tiles)
    )
    padded = triton.next_power_of_2(num_experts)
    block = min(BLOCK_CELLS // padded, 128 if num_pairs <= 128 else 1024)
    _sort_pairs[(1,)](
        ids,
        sorted_pairs.order,
        sorted_pairs.tile_expert,
        sorted_pairs.tile_start,
        sorted_pairs.tile_end,
        num_pairs,
        tiles,
        TILE=tile,
        EXPERTS=padded,
        BLOCK=block,
        num_warps=4 if block * padded <= 1024 else 8,
    )
    return sorted_pairs


@triton.jit(do_not_specialize=["num_pairs", "tiles"])  # It is compiled once, not for each kind of number.
def _sort_pairs(
    ids_ptr,
    order_ptr,
    tile_expert_ptr,
    tile_start_ptr,
    tile_end_ptr,
    num_pairs,
    tiles,
    TILE: tl.constexpr,
    EXPERTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    experts = tl.arange(0, EXPERTS)
    counts = tl.zeros((EXPERTS,), tl.int32)
    for first in range(0, num_pairs, BLOCK):
        chosen = _chosen(ids_ptr, first, num_pairs, EXPERTS, BLOCK)  # [BLOCK, EXPERTS]
        counts += tl.sum(chosen, 0)
    starts = tl.cumsum(counts, 0) - counts  # where each expert's range of `order` begins
    _store_order(ids_ptr, order_ptr, num_pairs, starts, EXPERTS, BLOCK)

    tile_counts = (counts + TILE - 1) // TILE
    behind = tl.cumsum(tile_counts, 0)  # the tile after each expert's last
    used = tl.sum(tile_counts, 0)
    for first in range(0, tiles, BLOCK):
        n = first + tl.arange(0, BLOCK)
        expert = tl.sum((behind[None, :] <= n[:, None]).to(tl.int32), 1)  # [BLOCK]; EXPERTS where n >= used
        mine = experts[None, :] == expert[:, None]  # [BLOCK, EXPERTS]
        # Tile n is its expert's tile n - (behind - tile_counts).
        start = n * TILE + tl.sum(tl.where(mine, (starts - (behind - tile_counts) * TILE)[None, :], 0), 1)
        end = tl.minimum(start + TILE, tl.sum(tl.where(mine, (starts + counts)[None, :], 0), 1))
        stored = n < tiles
        tl.store(tile_expert_ptr + n, tl.where(n < used, expert, -1), mask=stored)
        tl.store(tile_start_ptr + n, tl.where(n < used, start, -1), mask=stored)
        tl.store(tile_end_ptr + n, tl.where(n < used, end, -1), mask=stored)


@triton.jit
def _chosen(ids_ptr, first, num_pairs, EXPERTS: tl.constexpr, BLOCK: tl.constexpr):
    """Returns 1 where a pair's expert is this one and 0 elsewhere, [BLOCK, EXPERTS] int32."""
    pair = first + tl.arange(0, BLOCK)
    ids = tl.load(ids_ptr + pair, mask=pair < num_pairs, other=-1)
    return (ids[:, None] == tl.arange(0, EXPERTS)[None, :]).to(tl.int32)


@triton.jit
def _store_order(ids_ptr, order_ptr, num_pairs, starts, EXPERTS: tl.constexpr, BLOCK: tl.constexpr):
    """Stores each pair after those of smaller experts, and after the earlier pairs of its own expert."""
    for first in range(0, num_pairs, BLOCK):
        chosen = _chosen(ids_ptr, first, num_pairs, EXPERTS, BLOCK)
        places = starts[None, :] + tl.cumsum(chosen, 0) - 1  # [BLOCK, EXPERTS], where chosen
        pair = first + tl.arange(0, BLOCK)
        tl.store(order_ptr + tl.sum(chosen * places, 1), pair, mask=pair < num_pairs)
        starts += tl.sum(chosen, 0)


def sort_pairs_reference(ids: Tensor, num_experts: int, tile: int) -> SortedPairs:
    """Does what sort_pairs does, expert by expert and tile by tile."""
    experts = ids.flatten().tolist()
    order: list[int] = []
    tiles: list[tuple[int, int, int]] = []
    for expert in range(num_experts):
        start = len(order)
        order += [pair for pair, chosen in enumerate(experts) if chosen == expert]
        tiles += [(expert, at, min(at + tile, len(order))) for at in range(start, len(order), tile)]
    tiles += [(-1, -1, -1)] * (max_tiles(len(experts), num_experts, tile) - len(tiles))
    table = torch.tensor(tiles, dtype=torch.int32, device=ids.device)  # [N, 3]
    return SortedPairs(torch.tensor(order, dtype=torch.int32, device=ids.device), *table.unbind(1))
