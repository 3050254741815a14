"""Makes batches of sequences of given lengths, whose blocks lie all over the cache."""

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.model.batch import ForwardBatch
from octavo.model.config import ModelConfig
from octavo.model.kv_cache import KVCache

BLOCK = 16  # tokens of a block of the cache

Lengths = list[tuple[int, int]]  # for each sequence: its new tokens, and its length with them


def block_width(lengths: Lengths) -> int:
    """Returns the blocks that the longest sequence fills."""
    return max(-(-end // BLOCK) for _, end in lengths)


def random_table(lengths: Lengths) -> Tensor:
    """Returns a block table [S, W] in which each block of a cache appears once, in random order."""
    width = block_width(lengths)
    return torch.randperm(len(lengths) * width).view(len(lengths), width).int()


def batch_of(lengths: Lengths, table: Tensor, vocab_size: int, device: torch.device) -> ForwardBatch:
    """Returns the batch of sequences that own the blocks in their rows of the table, with random tokens."""
    new, ends = (torch.tensor(each) for each in zip(*lengths, strict=True))
    positions = torch.cat([torch.arange(end - count, end) for count, end in lengths])
    owners = torch.arange(len(lengths)).repeat_interleave(new)
    slots = table[owners, positions // BLOCK].long() * BLOCK + positions % BLOCK
    starts = F.pad(new.cumsum(0), (1, 0))
    return ForwardBatch(
        tokens=torch.randint(0, vocab_size, (len(positions),)).to(device),
        positions=positions.to(device),
        slots=slots.to(device),
        q_starts=starts.int().to(device),
        kv_lens=ends.int().to(device),
        block_table=table.contiguous().to(device),
        logit_rows=(starts[1:] - 1).to(device),
        q_lens_host=tuple(count for count, _ in lengths),
        kv_lens_host=tuple(end for _, end in lengths),
    )


def random_cache(config: ModelConfig, blocks: int, dtype: torch.dtype, device: torch.device) -> KVCache:
    """Returns a cache of random keys and values: zeros would take less power, and so perhaps less time."""
    cache = KVCache.allocate(config, blocks, BLOCK, dtype, device)
    for pages in cache.layers:
        pages.key_slots.normal_()
        pages.value_slots.normal_()
    return cache


def keys_seen(lengths: Lengths) -> int:
    """Counts the keys that new tokens see, each key once for each token that sees it."""
    return sum(new * (2 * end - new + 1) // 2 for new, end in lengths)
