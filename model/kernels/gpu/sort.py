"""Sorts (token, choice) pairs by expert, stably, and cuts each expert's range into tiles.

Pair p = t * k + c is token t's choice c. This is an example with two choices of three experts, and tiles of two pairs:

    ids         [[2, 0],      pair    0  1  2  3  4  5      order        1  2  3  4  0  5
                 [0, 1],      expert  2  0  0  1  1  2      expert       0  0  1  1  2  2
                 [1, 2]]
                                          tile_expert  0  1  2 -1 -1        there can be 3 + 6 // 2 = 5 tiles;
                                          tile_start   0  2  4 -1 -1        only the device knows how many are used
                                          tile_end     2  4  6 -1 -1

A program takes a block of pairs. It sorts them by expert and pair in one network of exchanges, so its work does not
grow with the number of experts. A decoding step is one block and one launch. More pairs are several blocks. Then a
launch before it counts the pairs of each block and expert, and a program places its pairs behind those of smaller
experts and of earlier blocks. The order is the same in every run, since only whole numbers are counted.

The launch is the only floor: 128 pairs are 512 bytes, and even 65,536 are 256 KB. Padding rows of a CUDA graph's bucket
are sorted like others. They are equal, so all of them together read at most k experts that nobody else chose.

The router's last program could sort as well, since the result depends on the ids alone. This would save a launch, some
1 us of a layer's 300 and more. But it would need a counter that every forward pass must find at zero, and fences; if
one of these were missing, no test would show it.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

FEW_PAIRS, MOST_PAIRS = 128, 1024  # of a block
LEAST_BINS = 32  # A histogram has at least as many bins as a warp has threads.
CELLS = 32  # counts that each thread holds at once, in as many registers


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
    experts = max(triton.next_power_of_2(num_experts), LEAST_BINS)
    block, warps = (FEW_PAIRS, 4) if num_pairs <= FEW_PAIRS else (MOST_PAIRS, 8)
    blocks = triton.cdiv(num_pairs, block)
    counts = None
    if blocks > 1:
        counts = ids.new_empty(blocks, experts)
        _count[(blocks,)](ids, counts, num_pairs, EXPERTS=experts, BLOCK=block)
    _place[(blocks,)](
        ids,
        counts,
        sorted_pairs.order,
        sorted_pairs.tile_expert,
        sorted_pairs.tile_start,
        sorted_pairs.tile_end,
        num_pairs,
        tiles,
        tile,
        EXPERTS=experts,
        BLOCK=block,
        LINES=max(CELLS * 32 * warps // experts, 1),
        num_warps=warps,
    )
    return sorted_pairs


@triton.jit
def _load_ids(ids_ptr, num_pairs, EXPERTS: tl.constexpr, BLOCK: tl.constexpr):
    """Returns the experts of this program's block of pairs, EXPERTS where there is no pair, and which there are."""
    pair = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = pair < num_pairs
    return tl.load(ids_ptr + pair, mask=there, other=EXPERTS), there


@triton.jit
def _histogram(ids, there, EXPERTS: tl.constexpr):
    """Returns the number of each expert's pairs, [EXPERTS] int32; its sums are of integers, and so have no order."""
    return tl.histogram(ids, EXPERTS, mask=there)


@triton.jit(do_not_specialize=["num_pairs"])  # It is compiled once, not for each kind of number.
def _count(ids_ptr, counts_ptr, num_pairs, EXPERTS: tl.constexpr, BLOCK: tl.constexpr):
    """Stores the histogram of each block of pairs: counts [blocks, EXPERTS]."""
    ids, there = _load_ids(ids_ptr, num_pairs, EXPERTS, BLOCK)
    experts = tl.arange(0, EXPERTS)
    tl.store(counts_ptr + tl.program_id(0) * EXPERTS + experts, _histogram(ids, there, EXPERTS))


@triton.jit(do_not_specialize=["num_pairs", "tiles", "tile"])
def _place(
    ids_ptr,
    counts_ptr,
    order_ptr,
    tile_expert_ptr,
    tile_start_ptr,
    tile_end_ptr,
    num_pairs,
    tiles,
    tile,
    EXPERTS: tl.constexpr,
    BLOCK: tl.constexpr,
    LINES: tl.constexpr,
):
    """Stores a block's pairs at their places, and a share of the tiles."""
    ids, there = _load_ids(ids_ptr, num_pairs, EXPERTS, BLOCK)
    own = _histogram(ids, there, EXPERTS)
    if counts_ptr is None:  # This block is the only one.
        counts, before = own, tl.zeros((EXPERTS,), tl.int32)
    else:
        counts, before = _sums(counts_ptr, EXPERTS, LINES)
    starts = tl.cumsum(counts, 0) - counts  # where each expert's range of `order` begins

    places = tl.arange(0, BLOCK)
    keys = tl.sort(ids * BLOCK + places)  # by expert, then by pair; no two are equal
    # The block's pairs of one expert lie side by side in `keys` and in `order`: they keep their distance.
    moved = tl.gather(starts + before - (tl.cumsum(own, 0) - own), tl.minimum(keys // BLOCK, EXPERTS - 1), 0)
    pair = tl.program_id(0) * BLOCK + keys % BLOCK
    tl.store(order_ptr + places + moved, pair, mask=keys < EXPERTS * BLOCK)

    share = tl.cdiv(tiles, tl.num_programs(0))
    first = tl.program_id(0) * share
    pointers = (tile_expert_ptr, tile_start_ptr, tile_end_ptr)
    _store_tiles(pointers, first, tl.minimum(first + share, tiles), starts, counts, tile, LINES)


@triton.jit
def _sums(counts_ptr, EXPERTS: tl.constexpr, LINES: tl.constexpr):
    """Returns the pairs of each expert in all blocks and in those before this program's, both [EXPERTS]."""
    block, blocks = tl.program_id(0), tl.num_programs(0)
    experts = tl.arange(0, EXPERTS)
    counts, before = tl.zeros((EXPERTS,), tl.int32), tl.zeros((EXPERTS,), tl.int32)
    for first in range(0, blocks, LINES):
        line = first + tl.arange(0, LINES)[:, None]
        part = tl.load(counts_ptr + line * EXPERTS + experts[None, :], mask=line < blocks, other=0)
        counts += tl.sum(part, 0)
        before += tl.sum(tl.where(line < block, part, 0), 0)
    return counts, before


@triton.jit
def _store_tiles(pointers, first, last, starts, counts, tile, LINES: tl.constexpr):
    """Stores the tiles from `first` to before `last`; each expert's begin where its pairs do."""
    EXPERTS: tl.constexpr = counts.shape[0]
    tile_counts = (counts + tile - 1) // tile
    behind = tl.cumsum(tile_counts, 0)  # the tile after each expert's last
    used = tl.sum(tile_counts, 0)
    for at in range(first, last, LINES):
        n = at + tl.arange(0, LINES)
        expert = tl.sum((behind[None, :] <= n[:, None]).to(tl.int32), 1)  # [LINES]; EXPERTS where n >= used
        known = tl.minimum(expert, EXPERTS - 1)
        # Tile n is its expert's tile n - (behind - tile_counts).
        start = n * tile + tl.gather(starts - (behind - tile_counts) * tile, known, 0)
        end = tl.minimum(start + tile, tl.gather(starts + counts, known, 0))
        tl.store(pointers[0] + n, tl.where(n < used, expert, -1), mask=n < last)
        tl.store(pointers[1] + n, tl.where(n < used, start, -1), mask=n < last)
        tl.store(pointers[2] + n, tl.where(n < used, end, -1), mask=n < last)


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
