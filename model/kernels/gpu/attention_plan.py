"""GpuPlan: which programs of the attention kernels compute which rows over which keys, decided once per step.

Where every sequence has one new token the programs follow from shapes alone, and read the lengths on the device: such a
plan can be captured in a CUDA graph, and replayed on other lengths and blocks. In any other batch the host counts them
out, into one small table that is uploaded in one copy:

    sequence     0: 40 new behind 0     1: 1 new behind 32767     2: 60 new behind 100
    tiles        [0..31] [32..39]       [0]                       [0..31] [32..59]
    keys         32      40             32768, in many pieces     132     160

Sequences with few new tokens (decode rows, drafts) run in smaller tiles, in a launch of their own: with 128 rows for
the 4 of a decode row, what memory bounds would be bound by arithmetic.
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

# Programs wanted for each multiprocessor. Several, so that the last to end does so soon after the others; not many, for
# each cut of a tile's keys costs a partial result, and in a captured graph a program that may find nothing to do.
PROGRAMS = 4
MOST_SPLITS = 32  # of a decode row's keys: what a program of the fold holds at once
LEAST_TILES = 2  # key tiles that a program is worth starting for
LONGEST = 8192  # new tokens of a sequence, as the table of configurations counts them; one is a decode row


@dataclass(frozen=True, slots=True)
class AttentionTiles:
    """How a model's attention is cut on a device."""

    kv_heads: int
    heads_per_kv: int  # query heads of a KV head
    processors: int  # the device's multiprocessors
    short: Config  # `rows` of a query tile and `inputs`, the keys of a key tile: for sequences that fit one such tile,
    long: Config  # and for all others

    @classmethod
    def of(cls, model: ModelConfig, dtype: torch.dtype, arch: str, processors: int) -> "AttentionTiles":
        """From the table, for queries and keys of `dtype`; arch as configs.arch_of. Raises ModelError."""
        heads_per_kv = model.num_attention_heads // model.num_key_value_heads
        least = 1 << (heads_per_kv - 1).bit_length()  # rows, for one token

        def config(tokens: int) -> Config:
            found = choose("attention.attend", SHORT[dtype], (heads_per_kv, model.head_dim), tokens, arch)
            return replace(found, rows=max(found.rows, least))

        return cls(model.num_key_value_heads, heads_per_kv, processors, config(1), config(LONGEST))


@dataclass(frozen=True, slots=True)
class Launch:
    """One launch of the attention kernel, and of the fold behind it where keys are cut."""

    config: Config
    tokens: int  # of a tile
    count: int  # tiles, or pieces of them where `items` lists them
    splits: int  # programs that share a tile's keys; of listed items, one
    slots: int  # partial results; 0: each tile is one program's
    folds: int  # tiles to be put together from those
    items: Tensor | None  # [count * 7] int32: see _Item; None: item n is the one token of sequence n
    parts: Tensor | None  # [folds * 4] int32: see _Fold


@dataclass(frozen=True, slots=True)
class GpuPlan:
    """What every layer of a step needs. Nothing in it is read on the host but sizes."""

    table: Tensor  # [N, B] int32, the batch's
    kv_lens: Tensor  # [N] int32, the batch's
    window: int | None
    launches: tuple[Launch, ...]


class _Item(NamedTuple):
    """One program's work (for each KV head): consecutive new tokens of one sequence, and the key tiles low to high."""

    sequence: int
    row: int  # of the batch, the first token's
    position: int  # the first token's
    tokens: int
    low: int
    high: int  # exclusive
    slot: int = -1  # where the partial result goes; -1: the result is whole

    @property
    def key_tiles(self) -> int:
        return self.high - self.low


class _Fold(NamedTuple):
    """A tile whose results lie in slots, `pieces` of them."""

    row: int
    tokens: int
    slot: int  # the first
    pieces: int


def plan(batch: ForwardBatch, cache: KVCache, window: int | None, tiles: AttentionTiles) -> GpuPlan:
    """window: position p sees the keys of (p - window, p]. Makes no sync, and no copy for a batch of single tokens."""
    if all(count == 1 for count in batch.q_lens_host):
        launches: tuple[Launch, ...] = (_decode(batch, cache.block_size, window, tiles),)
    else:
        launches = _mixed(batch, window, tiles)
    return GpuPlan(batch.block_table, batch.kv_lens, window, launches)


def _decode(batch: ForwardBatch, block_size: int, window: int | None, tiles: AttentionTiles) -> Launch:
    """One token of each sequence: from shapes alone, so for the longest sequences that the block table can hold."""
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
            parts=uploaded[2 * n + 1],
        )
        for n, (config, items, folds) in enumerate(cuts)
    )


def _tokens(config: Config, tiles: AttentionTiles) -> int:
    return config.rows // tiles.heads_per_kv


def _query_tiles(whole: _Item, end: int, window: int | None, config: Config, tiles: AttentionTiles) -> Iterable[_Item]:
    """A sequence's new tokens, tile by tile, each with all of the keys that it sees; with none in a padding row."""
    size = _tokens(config, tiles)
    for first in range(0, whole.tokens, size):
        tokens = min(size, whole.tokens - first)
        position = whole.position + first
        oldest = 0 if window is None else max(0, position + 1 - window)
        keys = range(oldest // config.inputs, -(-(position + tokens) // config.inputs)) if end else range(0)
        yield _Item(whole.sequence, whole.row + first, position, tokens, keys.start, keys.stop)


def _cut(whole: Sequence[_Item], tiles: AttentionTiles) -> tuple[list[_Item], list[_Fold]]:
    """The tiles, the long ones in pieces, and how those fit together; the longest first: the last to start are short.

    A piece is less than two shares of the work, of which there are PROGRAMS for each processor: so however long one
    sequence is, the launch takes little longer than its work, evenly spread. And the partial results are few: at most
    a slot a share.
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
    """Each of the tables on the device, all in one copy; from pinned memory, for which the host need not wait."""
    numbers = list(chain.from_iterable(chain.from_iterable(tables)))
    copied = torch.tensor(numbers, dtype=torch.int32, pin_memory=device.type == "cuda").to(device, non_blocking=True)
    return copied.split([sum(map(len, table)) for table in tables])
