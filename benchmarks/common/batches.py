"""Batches to measure attention and whole steps on: sequences of given lengths, their blocks all over the cache."""

import torch
import torch.nn.functional as F

from octavo.model.batch import ForwardBatch
from octavo.model.config import ModelConfig
from octavo.model.kv_cache import KVCache

BLOCK = 16

Rows = list[tuple[int, int]]  # of each sequence: new tokens, and its length with them


def batch_of(rows: Rows, vocab: int, device: torch.device) -> tuple[ForwardBatch, int]:
    """The batch with random tokens, and the number of blocks of its cache."""
    new, ends = (torch.tensor(each) for each in zip(*rows, strict=True))
    width = -(-int(ends.max()) // BLOCK)
    table = torch.randperm(len(rows) * width).view(len(rows), width).int()
    positions = torch.cat([torch.arange(end - count, end) for count, end in rows])
    owners = torch.arange(len(rows)).repeat_interleave(new)
    slots = table[owners, positions // BLOCK].long() * BLOCK + positions % BLOCK
    starts = F.pad(new.cumsum(0), (1, 0))
    batch = ForwardBatch(
        tokens=torch.randint(0, vocab, (len(positions),)).to(device),
        positions=positions.to(device),
        slots=slots.to(device),
        q_starts=starts.int().to(device),
        kv_lens=ends.int().to(device),
        block_table=table.to(device),
        logit_rows=(starts[1:] - 1).to(device),
        q_lens_host=tuple(count for count, _ in rows),
        kv_lens_host=tuple(end for _, end in rows),
    )
    return batch, len(rows) * width


def random_cache(config: ModelConfig, blocks: int, dtype: torch.dtype, device: torch.device) -> KVCache:
    """Keys and values as if there had been tokens: zeros would cost less power, and so perhaps less time."""
    cache = KVCache.allocate(config, blocks, BLOCK, dtype, device)
    for pages in cache.layers:
        pages.key_slots.normal_()
        pages.value_slots.normal_()
    return cache


def seen(rows: Rows) -> int:
    """Pairs of a new token and a key that it sees."""
    return sum(new * (2 * end - new + 1) // 2 for new, end in rows)
