"""Runs a model over sequences whose cache blocks are scattered, in a few plain lines."""

from collections.abc import Sequence

import torch
from torch import Tensor

from octavo.model.batch import ForwardBatch
from octavo.model.decoder import Decoder
from octavo.model.kv_cache import KVCache


class Pages:
    """Pages hold a model, its cache and the sequences in it; every sequence owns its blocks from the start."""

    def __init__(self, model: Decoder, sequences: int, length: int, block_size: int = 4) -> None:
        per_sequence = -(-length // block_size)
        self.model, self.block_size = model, block_size
        blocks = torch.randperm(sequences * per_sequence, generator=torch.Generator().manual_seed(0))
        self.table = blocks.view(sequences, per_sequence).int()
        self.cache = KVCache.allocate(
            model.config, sequences * per_sequence, block_size, model.activation_dtype, model.device
        )

    def step(self, rows: Sequence[tuple[int, int, Sequence[int]]], every: bool = True) -> Tensor:
        """Runs rows (sequence, tokens before, new tokens); returns logits of every new token, or of each row's last."""
        with torch.inference_mode():
            return self.model.forward(self.batch(rows, every), self.cache)

    def batch(self, rows: Sequence[tuple[int, int, Sequence[int]]], every: bool = True) -> ForwardBatch:
        return flat_batch(rows, self.table, self.block_size, every)

    def prompt(self, tokens: Sequence[int], sequence: int = 0) -> Tensor:
        return self.step([(sequence, 0, tokens)])


def flat_batch(
    rows: Sequence[tuple[int, int, Sequence[int]]], table: Tensor, block_size: int, every: bool = True
) -> ForwardBatch:
    """Returns the flat batch of rows (sequence, tokens before, new tokens)."""
    tokens, positions, slots, counts, ends = [], [], [], [], []
    for sequence, start, new in rows:
        for position, token in enumerate(new, start):
            tokens.append(token)
            positions.append(position)
            slots.append(int(table[sequence, position // block_size]) * block_size + position % block_size)
        counts.append(len(new))
        ends.append(start + len(new))
    starts = torch.tensor([0, *counts]).cumsum(0)
    return ForwardBatch(
        tokens=torch.tensor(tokens),
        positions=torch.tensor(positions),
        slots=torch.tensor(slots),
        q_starts=starts.int(),
        kv_lens=torch.tensor(ends, dtype=torch.int32),
        block_table=table[[sequence for sequence, _, _ in rows]],
        logit_rows=torch.arange(len(tokens)) if every else starts[1:] - 1,
        q_lens_host=tuple(counts),
        kv_lens_host=tuple(ends),
    )
