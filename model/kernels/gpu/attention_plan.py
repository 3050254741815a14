"""Plans attention once per forward pass: which program of the kernels computes which rows over which keys.

If every sequence has one new token, the plan follows from shapes alone, and the programs read the lengths on the
device. A CUDA graph can capture such a plan and replay it on other lengths and blocks. For any other batch the host
lists the programs' work in one small table, which is uploaded in one copy:

    sequence     0: 40 new behind 0     1: 1 new behind 32767     2: 60 new behind 100
    tiles        [0..31] [32..39]       [0]                       [0..31] [32..59]
    keys         32      40             32768, in many pieces     132     160

Sequences with few new tokens (decode rows, drafts) run in smaller tiles, in a launch of their own. A tile of 128 rows
for the 4 rows of a decoding token would make arithmetic the limit where memory should be.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from octavo.model.batch import ForwardBatch
from octavo.model.config import ModelConfig
from octavo.model.kernels.gpu.configs import Config, choose
from octavo.model.kv_cache import KVCache
from octavo.model.weights.precision import SHORT

# Each multiprocessor should get several programs, so that the last one ends soon after the others. They should not be
# many: each cut of a tile's keys costs a partial result, and in a captured graph a program that may find nothing to do.
PROGRAMS = 4
MOST_SPLITS = 32  # A program of the fold holds so many partial results at once.
LEAST_TILES = 2  # A program is worth starting for so many key tiles.
LONGEST = 8192  # The configuration for long sequences is looked up with so many tokens; for decode rows, with one.


@dataclass(frozen=True, slots=True)
class AttentionTiles:
    """AttentionTiles say how a model's attention is cut into tiles on a device."""

    kv_heads: int
    heads_per_kv: int  # query heads that share a KV head
    processors: int  # the device's multiprocessors
    # The kernel uses of a Config: `rows` of a query tile, `inputs` as the keys of a key tile, warps and stages.
    short: Config  # for sequences that fit one such tile
    long: Config  # for all others

    @classmethod
    def of(cls, model: ModelConfig, dtype: torch.dtype, arch: str, processors: int) -> "AttentionTiles":
        """Looks the tiles up in the table, for queries and keys of `dtype`; arch is what configs.arch_of returns.

        Raises ModelError if the table has none.
        """
        heads_per_kv = model.num_attention_heads // model.num_key_value_heads
        least = 1 << (heads_per_kv - 1).bit_length()  # rows for one token

        def config(tokens: int) -> Config:
            found = choose("attention.attend", SHORT[dtype], (heads_per_kv, model.head_dim), tokens, arch)
            return replace(found, rows=max(found.rows, least))

        return cls(model.num_key_value_heads, heads_per_kv, processors, config(1), config(LONGEST))


@dataclass(frozen=True, slots=True)
class Launch:
    """A Launch describes one launch of the attention kernel, and of the fold after it where keys are cut."""

    config: Config
    tokens: int  # in a tile
    count: int  # number of tiles, or of their pieces where `items` lists them
    splits: int  # programs that share a tile's keys; 1 for listed items
    slots: int  # partial results; 0: each tile is computed by one program
    folds: int  # tiles that are put together from partial results
    items: Tensor | None  # [count * 7] int32, lines of _Item; None: item n is the one token of sequence n
    pieces: Tensor | None  # [folds * 4] int32, lines of _Fold


@dataclass(frozen=True, slots=True)
class GpuPlan:
    """A GpuPlan holds what attention needs in every layer of a forward pass. The host reads only its sizes."""

    table: Tensor  # [N, B] int32, the batch's
    kv_lens: Tensor  # [N] int32, the batch's
    window: int | None
    launches: tuple[Launch, ...]


class _Item(NamedTuple):
    """An _Item is one program's work for each KV head: adjacent new tokens of a sequence over key tiles low to high."""

    sequence: int
    row: int  # the first token's, in the batch
    position: int  # the first token's
    tokens: int
    low: int
    high: int  # exclusive
    slot: int = -1  # place of the partial result; -1: the result is whole

    @property
    def key_tiles(self) -> int:
        return self.high - self.low


class _Fold(NamedTuple):
    """A _Fold is a tile whose partial results lie in `pieces` slots, from `slot` on."""

    row: int
    tokens: int
    slot: int
    pieces: int


def plan(batch: ForwardBatch, cache: KVCache, window: int | None, tiles: AttentionTiles) -> GpuPlan:
    """Plans the attention of a batch, without a sync, and for a batch of single tokens without a copy.

    With a window, position p sees the keys of (p - window, p].
    """
    if all(count == 1 for count in batch.q_lens_host):
        launches: tuple[Launch, ...] = (_decode(batch, cache.block_size, window, tiles),)
    else:
        launches = _mixed(batch, window, tiles)
    return GpuPlan(batch.block_table, batch.kv_lens, window, launches)


def _decode(batch: ForwardBatch, block_size: int, window: int | None, tiles: AttentionTiles) -> Launch:
    """Plans one token of each sequence from shapes alone: for the longest sequences that the block table can hold."""
    count, width = batch.block_table.shape
    longest = width * block_size if window is None else min(width * block_size, window + tiles.short.inputs)
    wanted = -(-PROGRAMS * tiles.processors // (count * tiles.kv_heads))
    splits = max(1, min(wanted, MOST_SPLITS, -(-longest // (LEAST_TILES * tiles.short.inputs))))
    slots, folds = (count * splits, count) if splits > 1 else (0, 0)
    return Launch(tiles.short, 1, count, splits, slots, folds, None, None)


def _mixed(batch: ForwardBatch, window: int | None, tiles: AttentionTiles) -> tuple[Launch, ...]:
    short: list[_Item] = []
    long: list[_Item] = []
    row = 0
    for sequence, (count, end) in enumerate(zip(batch.q_lens_host, batch.kv_lens_host, strict=True)):
        fits = count <= _tokens(tiles.short, tiles)
        config = tiles.short if fits else tiles.long
        whole = _Item(sequence, row, end - count, count, 0, 0)
        (short if fits else long).extend(_query_tiles(whole, end, window, config, tiles))
        row += count
    cuts = [(config, *_cut(whole, tiles)) for config, whole in ((tiles.long, long), (tiles.short, short)) if whole]
    tables: list[Sequence[tuple[int, ...]]] = []
    for _, items, folds in cuts:
        tables.extend((items, folds))
    uploaded = _upload(tables, batch.block_table.device)
    return tuple(
        Launch(
            config=config,
            tokens=_tokens(config, tiles),
            count=len(items),
            splits=1,
            slots=sum(fold.pieces for fold in folds),
            folds=len(folds),
            items=uploaded[2 * n],
            pieces=uploaded[2 * n + 1],
        )
        for n, (config, items, folds) in enumerate(cuts)
    )


def _tokens(config: Config, tiles: AttentionTiles) -> int:
    return config.rows // tiles.heads_per_kv


def _query_tiles(whole: _Item, end: int, window: int | None, config: Config, tiles: AttentionTiles) -> Iterable[_Item]:
    """Yields a sequence's new tokens tile by tile, each tile with all keys that it sees; a padding row sees none."""
    size = _tokens(config, tiles)
    for first in range(0, whole.tokens, size):
        tokens = min(size, whole.tokens - first)
        position = whole.position + first
        oldest = 0 if window is None else max(0, position + 1 - window)
        keys = range(oldest // config.inputs, -(-(position + tokens) // config.inputs)) if end else range(0)
        yield _Item(whole.sequence, whole.row + first, position, tokens, keys.start, keys.stop)


def _cut(whole: Sequence[_Item], tiles: AttentionTiles) -> tuple[list[_Item], list[_Fold]]:
    """Cuts long tiles into pieces; returns all items and the folds. The longest come first, so that the last are short.

    The work is divided into PROGRAMS shares for each processor, and a piece is less than two shares. So however long
    one sequence is, the launch takes little longer than if its work were evenly spread. The partial results are few:
    at most one slot a share.
    """
    work = sum(tile.key_tiles for tile in whole) * tiles.kv_heads
    share = max(LEAST_TILES, -(-work // (PROGRAMS * tiles.processors)))
    items: list[_Item] = []
    folds: list[_Fold] = []
    slot = 0
    for tile in whole:
        size = -(-tile.key_tiles // max(1, tile.key_tiles // share))
        lows = range(tile.low, tile.high, size) if size else ()
        if len(lows) < 2:
            items.append(tile)
            continue
        folds.append(_Fold(tile.row, tile.tokens, slot, len(lows)))
        for index, low in enumerate(lows, slot):
            items.append(tile._replace(low=low, high=min(low + size, tile.high), slot=index))
        slot += len(lows)
    return sorted(items, key=lambda item: -item.key_tiles), folds


def _upload(tables: Sequence[Sequence[tuple[int, ...]]], device: torch.device) -> tuple[Tensor, ...]:
    """Copies all tables to the device at once, from pinned memory, so that the host need not wait."""
    numbers = list(chain.from_iterable(chain.from_iterable(tables)))
    copied = torch.tensor(numbers, dtype=torch.int32, pin_memory=device.type == "cuda").to(device, non_blocking=True)
    return copied.split([sum(map(len, table)) for table in tables])
