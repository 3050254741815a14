"""Makes tensors on the device of a batch of plain numbers, in one copy that nobody waits for."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate, chain, repeat
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from octavo.engine.schedule.batch import PENDING, Batch, Row
from octavo.model.batch import ForwardBatch

ALIGNED = 16  # bytes

Array = TypeVar("Array", Tensor, NDArray[Any])


@dataclass(frozen=True, slots=True)
class PendingTokens:
    """PendingTokens are the tokens that the step before draws. They are on the device, and not known to the host."""

    tokens: Tensor  # [R] int64, -1: the logits were not numbers
    places: Mapping[str, int]  # request id -> the place of its token in `tokens`

    def put_into(self, tokens: Tensor) -> None:
        """Replaces the pending ones of tokens [T] int64, where -1 - p stands for the token at place p.

        A token that could not be drawn becomes id 0, which exists: nobody reads what is computed behind it.
        """
        places = (-1 - tokens).clamp_(min=0)
        tokens.copy_(torch.where(tokens < 0, self.tokens.index_select(0, places).clamp_(min=0), tokens))


@dataclass(frozen=True, slots=True)
class BatchSizes:
    """BatchSizes are the sizes of a ForwardBatch. They say where its tensors lie in the one buffer that holds them all.

    Each tensor begins at a multiple of ALIGNED bytes in every step: kernels may be compiled for that.
    """

    tokens: int  # T
    rows: int  # N
    logit_rows: int  # R
    blocks: int  # B

    @classmethod
    def of(cls, batch: Batch) -> "BatchSizes":
        """Returns the smallest sizes that hold the batch."""
        return cls(
            tokens=sum(len(row.tokens) for row in batch.rows),
            rows=len(batch.rows),
            logit_rows=sum((row.output is not None) + len(row.targets) for row in batch.rows),
            blocks=max(len(row.blocks) for row in batch.rows),
        )

    def _starts(self) -> tuple[int, ...]:
        """Returns where each tensor begins, in the order of `split`, and where the last one ends, in bytes."""
        token_bytes, row_bytes = 8 * self.tokens, 4 * self.rows
        table_bytes = row_bytes * self.blocks
        nbytes = (token_bytes, token_bytes, token_bytes, 8 * self.logit_rows, row_bytes + 4, row_bytes, table_bytes)
        return (0, *accumulate(-(-size // ALIGNED) * ALIGNED for size in nbytes))

    @property
    def nbytes(self) -> int:
        """Returns the size of the buffer in bytes."""
        return self._starts()[-1]

    def split(self, longs: Array, ints: Array) -> list[Array]:
        """Returns the parts of a buffer, which is given as int64 and as int32.

        They are tokens, positions, slots and logit_rows in int64, then q_starts, kv_lens and block_table in int32.
        """
        starts, tokens, rows = self._starts(), self.tokens, self.rows
        wide, narrow = (tokens, tokens, tokens, self.logit_rows), (rows + 1, rows, rows * self.blocks)
        parts = [longs[start // 8 : start // 8 + count] for start, count in zip(starts, wide, strict=False)]
        parts += [ints[start // 4 : start // 4 + count] for start, count in zip(starts[4:], narrow, strict=False)]
        parts[-1] = parts[-1].reshape(rows, self.blocks)
        return parts

    def forward_batch(self, buffer: Tensor, q_lens: tuple[int, ...], kv_lens: tuple[int, ...]) -> ForwardBatch:
        """Returns the same parts by their names, with the lengths [N] for a host that loops over the rows."""
        tokens, positions, slots, logit_rows, q_starts, ends, block_table = self.split(
            buffer.view(torch.int64), buffer.view(torch.int32)
        )
        return ForwardBatch(tokens, positions, slots, q_starts, ends, block_table, logit_rows, q_lens, kv_lens)


def to_forward_batch(
    batch: Batch, block_size: int, device: torch.device, pending: PendingTokens | None = None
) -> ForwardBatch:
    """Returns the rows as one flat batch on the device. Where a row's token is PENDING, `pending` has it."""
    sizes = BatchSizes.of(batch)
    buffer = on_host(batch, sizes, block_size, device, pending).to(device, non_blocking=True)
    q_lens, kv_lens = tuple(len(row.tokens) for row in batch.rows), tuple(row.end for row in batch.rows)
    made = sizes.forward_batch(buffer, q_lens, kv_lens)
    if pending is not None:
        pending.put_into(made.tokens)
    return made


def on_host(
    batch: Batch, sizes: BatchSizes, block_size: int, device: torch.device, pending: PendingTokens | None = None
) -> Tensor:
    """Returns the batch in a buffer [nbytes] of these sizes. Further rows are padding, which writes and sees nothing.

    Pending tokens are encoded for PendingTokens.put_into. For a GPU the memory is pinned, so that it is copied while
    the host goes on. No step overwrites a buffer that is still being copied: torch hands pinned memory out again only
    after the copies from it are done.
    """
    buffer = torch.empty(sizes.nbytes, dtype=torch.uint8, pin_memory=device.type == "cuda")
    longs: NDArray[Any] = buffer.numpy().view(np.int64)
    ints: NDArray[Any] = buffer.numpy().view(np.int32)
    tokens, positions, slots, logit_rows, q_starts, kv_lens, table = sizes.split(longs, ints)
    rows, padding = batch.rows, sizes.rows - len(batch.rows)
    counts = np.array([len(row.tokens) for row in rows] + [1] * padding)  # [N]
    ends = np.array([row.end for row in rows] + [0] * padding)  # [N]
    q_starts[0], q_starts[1:], kv_lens[:], table[:] = 0, counts.cumsum(), ends, 0
    for line, row in zip(table, rows, strict=False):
        line[: len(row.blocks)] = row.blocks
    owner = np.repeat(np.arange(sizes.rows), counts)  # [T]
    positions[:] = np.arange(sizes.tokens) + (ends - q_starts[1:])[owner]  # -1 in padding
    slots[:] = table[owner, positions // block_size].astype(np.int64) * block_size + positions % block_size
    ids = chain(chain.from_iterable(_ids(row, pending) for row in rows), repeat(0, padding))
    tokens[:] = np.fromiter(ids, np.int64, sizes.tokens)
    logit_rows[:] = _logit_rows(batch, q_starts, sizes)
    positions[sizes.tokens - padding :], slots[sizes.tokens - padding :] = 0, -1
    return buffer


def _ids(row: Row, pending: PendingTokens | None) -> tuple[int, ...]:
    """Returns the row's tokens, with a pending one encoded for PendingTokens.put_into."""
    if pending is None or row.tokens[-1] != PENDING:
        return row.tokens
    return (*row.tokens[:-1], -1 - pending.places[row.id])


def _logit_rows(batch: Batch, q_starts: NDArray[np.int32], sizes: BatchSizes) -> NDArray[np.int64]:
    """Returns which of the batch's tokens need logits. [R]

    They are the last token of each row that is sampled, the tokens before the targets of prompts, and all padding.
    """
    rows = batch.rows
    sampled = q_starts[1 : len(rows) + 1][[row.output is not None for row in rows]] - 1
    targets = [first + np.arange(len(row.targets)) for first, row in zip(q_starts, rows, strict=False) if row.targets]
    padding = np.arange(q_starts[len(rows)], sizes.tokens)
    return np.concatenate((sampled, *targets, padding))
