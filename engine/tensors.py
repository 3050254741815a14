"""A batch of plain numbers as tensors on the device, in one copy that nobody waits for."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain, repeat

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.step import PENDING, Batch, Row
from model.batch import ForwardBatch

Places = Mapping[str, int]  # by request id: where its token lies among those that the step before draws


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a ForwardBatch, and so where its tensors lie in the one buffer that holds them all:

    tokens [T]  positions [T]  slots [T]  logit_rows [R] | q_starts [N+1]  kv_lens [N]  block_table [N, B]
    int64, and first, so that all are aligned            | int32
    """

    tokens: int  # T
    rows: int  # N
    logit_rows: int  # R
    blocks: int  # B

    @classmethod
    def of(cls, batch: Batch) -> "Shape":
        """As small as the batch."""
        return cls(
            tokens=sum(len(row.tokens) for row in batch.rows),
            rows=len(batch.rows),
            logit_rows=sum((row.output is not None) + len(row.targets) for row in batch.rows),
            blocks=max(len(row.blocks) for row in batch.rows),
        )

    @property
    def nbytes(self) -> int:
        return 8 * (3 * self.tokens + self.logit_rows) + 4 * (2 * self.rows + 1 + self.rows * self.blocks)

    def split(self, buffer: Tensor) -> tuple[Tensor, ...]:
        """The tensors in a buffer [nbytes] of bytes, in the order above."""
        wide = 8 * (3 * self.tokens + self.logit_rows)
        longs, ints = buffer[:wide].view(torch.int64), buffer[wide:].view(torch.int32)
        starts, ends, table = torch.split(ints, [self.rows + 1, self.rows, self.rows * self.blocks])
        parts = torch.split(longs, [self.tokens, self.tokens, self.tokens, self.logit_rows])
        return (*parts, starts, ends, table.view(self.rows, self.blocks))

    def forward_batch(self, buffer: Tensor, q_lens: tuple[int, ...], kv_lens: tuple[int, ...]) -> ForwardBatch:
        """The same tensors by their names, with the counts [N] of a host that loops over them."""
        tokens, positions, slots, logit_rows, q_starts, ends, block_table = self.split(buffer)
        return ForwardBatch(tokens, positions, slots, q_starts, ends, block_table, logit_rows, q_lens, kv_lens)


def to_forward_batch(batch: Batch, block_size: int, device: torch.device, places: Places | None = None) -> ForwardBatch:
    """The rows as one flat batch on the device. `places` are of the requests whose token is pending."""
    shape = Shape.of(batch)
    buffer = on_host(batch, shape, block_size, device, places or {}).to(device, non_blocking=True)
    q_lens, kv_lens = tuple(len(row.tokens) for row in batch.rows), tuple(row.end for row in batch.rows)
    return shape.forward_batch(buffer, q_lens, kv_lens)


def on_host(batch: Batch, shape: Shape, block_size: int, device: torch.device, places: Places) -> Tensor:
    """The batch in a buffer [nbytes] of the shape; what that has more is padding, which writes and sees nothing.

    For a GPU the memory is pinned, so that it is copied while the host goes on. No step overwrites what an earlier one
    has yet to copy: torch hands pinned memory out again when the copies from it are done, and so buffers take turns.
    """
    buffer = torch.empty(shape.nbytes, dtype=torch.uint8, pin_memory=device.type == "cuda")
    tokens, positions, slots, logit_rows, q_starts, kv_lens, table = (part.numpy() for part in shape.split(buffer))
    rows, padding = batch.rows, shape.rows - len(batch.rows)
    counts = np.array([len(row.tokens) for row in rows] + [1] * padding)  # [N]
    ends = np.array([row.end for row in rows] + [0] * padding)  # [N]
    q_starts[0], q_starts[1:], kv_lens[:], table[:] = 0, counts.cumsum(), ends, 0
    for line, row in zip(table, rows, strict=False):
        line[: len(row.blocks)] = row.blocks
    owner = np.repeat(np.arange(shape.rows), counts)  # [T]
    positions[:] = np.arange(shape.tokens) + (ends - q_starts[1:])[owner]  # -1 in padding
    slots[:] = table[owner, positions // block_size].astype(np.int64) * block_size + positions % block_size
    ids = chain(chain.from_iterable(_ids(row, places) for row in rows), repeat(0, padding))
    tokens[:] = np.fromiter(ids, np.int64, shape.tokens)
    logit_rows[:] = _logit_rows(batch, q_starts, shape)
    positions[shape.tokens - padding :], slots[shape.tokens - padding :] = 0, -1
    return buffer


def _ids(row: Row, places: Places) -> tuple[int, ...]:
    """The row's tokens; a pending one is -1 - p, with p its place among those that the step before draws."""
    return row.tokens if row.tokens[-1] != PENDING else (*row.tokens[:-1], -1 - places[row.id])


def take_drawn(tokens: Tensor, drawn: Tensor) -> None:
    """Puts what the step before has drawn, drawn [R], where tokens [T] are pending; all of it on the device.

    What was no number is -1 there. The row that follows it is computed for nobody, with some token that exists.
    """
    places = (-1 - tokens).clamp_(min=0)
    tokens.copy_(torch.where(tokens < 0, drawn.index_select(0, places).clamp_(min=0), tokens))


def _logit_rows(batch: Batch, q_starts: NDArray[np.int32], shape: Shape) -> NDArray[np.int64]:
    """The last token of each row that samples, those before the targets of prompts, and all of the padding. [R]"""
    rows = batch.rows
    sampled = q_starts[1 : len(rows) + 1][[row.output is not None for row in rows]] - 1
    targets = [first + np.arange(len(row.targets)) for first, row in zip(q_starts, rows, strict=False) if row.targets]
    padding = np.arange(q_starts[len(rows)], shape.tokens)
    return np.concatenate((sampled, *targets, padding))
