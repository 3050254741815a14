"""Keeps which experts the token in each slot of the cache was sent to, so that whoever finds it there knows, too.

A slot has the number that it has in the cache. Steps are stored in the order in which they were launched, as the cache
is written: a row of a sequence that has ended meanwhile may still be stored in blocks that were freed, and the next
owner, whose rows were launched later, overwrites that. So what a row's blocks hold up to its end is its sequence's,
from the moment when the row itself is stored until the next step is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from octavo.engine.api import Routes as ToldRoutes
from octavo.engine.schedule.batch import Row
from octavo.model.config import ModelConfig
from octavo.model.routes import Routes, id_type
from octavo.model.weights.memory import ALIGNED, Zeros


@dataclass(frozen=True, slots=True)
class RouteStore:
    """A RouteStore lies on the host, wherever the cache lies: nothing that the model computes reads it."""

    ids: NDArray[Any]  # [slots, L, k] uint8 or int16
    weights: NDArray[np.float16]  # [slots, L, k]
    block_size: int

    @classmethod
    def of(cls, config: ModelConfig, num_blocks: int, block_size: int, zeros: Zeros) -> "RouteStore | None":
        """Makes a store beside a cache of that size; returns None for a model without a choice."""
        layers = config.sparse_layers()
        if not layers:
            return None
        shape = (num_blocks * block_size, len(layers), config.num_experts_per_tok)
        ids, weights = zeros(shape, id_type(config.num_experts)), zeros(shape, torch.float16)
        return cls(ids.numpy(), weights.numpy(), block_size)

    @staticmethod
    def bytes_per_token(config: ModelConfig) -> int:
        """Returns the bytes that the routes of one position take."""
        pairs = len(config.sparse_layers()) * config.num_experts_per_tok
        return pairs * (id_type(config.num_experts).itemsize + torch.float16.itemsize)

    @staticmethod
    def bytes_taken(config: ModelConfig, num_blocks: int, block_size: int) -> int:
        """Returns the bytes that `of` asks for, with what allocation rounds up."""
        pairs = num_blocks * block_size * len(config.sparse_layers()) * config.num_experts_per_tok
        sizes = (pairs * dtype.itemsize for dtype in (id_type(config.num_experts), torch.float16))
        return sum(size + -size % ALIGNED for size in sizes)

    def put(self, slots: NDArray[np.int64], routes: Routes) -> None:
        """Stores the routes of T tokens, which are on the host, in the slots [T]."""
        self.ids[slots] = routes.ids.numpy()
        self.weights[slots] = routes.weights.numpy()

    def told(self, rows: Sequence[Row]) -> list[ToldRoutes | None]:
        """Returns what each row's client wants to know of the positions before the end of the row, which is stored."""
        firsts = [row.end if row.routes_from is None else min(row.routes_from, row.end) for row in rows]
        if all(first == row.end for row, first in zip(rows, firsts, strict=True)):
            return [None] * len(rows)
        slots = Places.of(rows, firsts, self.block_size).slots
        ids, weights = self.ids[slots].astype("<i4"), self.weights[slots].astype("<f4")  # [n, L, k]
        found, end = list[ToldRoutes | None](), 0
        for row, first in zip(rows, firsts, strict=True):
            start, end = end, end + row.end - first
            part = ids[start:end].tobytes(), weights[start:end].tobytes()
            found.append(ToldRoutes(first, end - start, *part) if end > start else None)
        return found


@dataclass(frozen=True, slots=True)
class Places:
    """Places are positions of some rows, and the slots that they have: M of them, one row's behind another's."""

    owners: NDArray[np.int64]  # [M] the index of the row
    positions: NDArray[np.int64]  # [M]
    slots: NDArray[np.int64]  # [M]

    @classmethod
    def of(cls, rows: Sequence[Row], firsts: Sequence[int], block_size: int) -> "Places":
        """Returns the places of each row from its first position on, up to its end."""
        starts, ends = np.array(firsts), np.array([row.end for row in rows])  # [N]
        counts, lowest = ends - starts, starts // block_size
        taken = (ends - 1) // block_size + 1 - lowest  # [N] blocks
        spans = zip(rows, lowest.tolist(), taken.tolist(), strict=True)
        blocks = np.fromiter(chain.from_iterable(row.blocks[low : low + count] for row, low, count in spans), np.int64)
        owners = np.repeat(np.arange(len(rows)), counts)
        # The first position of a row is at counts.cumsum() - counts, and its first block at taken.cumsum() - taken.
        positions = np.arange(len(owners)) + (starts - counts.cumsum() + counts)[owners]
        at = positions // block_size + (taken.cumsum() - taken - lowest)[owners]
        return cls(owners, positions, blocks[at] * block_size + positions % block_size)
