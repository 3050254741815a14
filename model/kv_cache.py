"""Holds the keys and values of all positions of all sequences, in pages; it does not know whose they are."""

from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.model.config import ModelConfig
from octavo.model.weights.memory import ALIGNED, Zeros, commit, zeros_on


@dataclass(frozen=True, slots=True)
class LayerCache:
    """A LayerCache holds the pages of one layer. Slot s is keys[s // block_size, s % block_size]."""

    keys: Tensor  # [num_blocks, block_size, Hkv, D]
    values: Tensor  # [num_blocks, block_size, Hkv, D]
    key_slots: Tensor  # [num_blocks * block_size + 1, Hkv, D], the same memory and one spare slot behind it
    value_slots: Tensor

    def write(self, keys: Tensor, values: Tensor, targets: Tensor) -> None:
        """Stores keys [T, Hkv, D] and values [T, Hkv, D] at targets [T], which KVCache.targets returns."""
        self.key_slots.index_copy_(0, targets, keys)
        self.value_slots.index_copy_(0, targets, values)


@dataclass(frozen=True, slots=True)
class KVCache:
    """A KVCache is the memory of paged attention (https://arxiv.org/abs/2309.06180); any sequence may own a block."""

    layers: tuple[LayerCache, ...]
    block_size: int
    num_blocks: int

    @classmethod
    def allocate(
        cls, config: ModelConfig, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device | str
    ) -> "KVCache":
        """Allocates pages on a device.

        All of the memory is taken now. If the system promised it and could not give it, the process would end later.
        """
        zeros = zeros_on(torch.device(device))
        return cls.of(config, num_blocks, block_size, dtype, lambda shape, dtype: commit(zeros(shape, dtype)))

    @classmethod
    def of(cls, config: ModelConfig, num_blocks: int, block_size: int, dtype: torch.dtype, zeros: Zeros) -> "KVCache":
        """Makes pages of zeros, because a padding row that reads an unwritten slot must not meet a NaN."""
        shape = (num_blocks, block_size, config.num_key_value_heads, config.head_dim)

        def pages() -> tuple[Tensor, Tensor]:
            slots = zeros((num_blocks * block_size + 1, *shape[2:]), dtype)
            return slots[:-1].view(shape), slots

        layers = []
        for _ in range(config.num_hidden_layers):
            (keys, key_slots), (values, value_slots) = pages(), pages()
            layers.append(LayerCache(keys, values, key_slots, value_slots))
        return cls(tuple(layers), block_size, num_blocks)

    @staticmethod
    def bytes_taken(config: ModelConfig, num_blocks: int, block_size: int, dtype: torch.dtype) -> int:
        """Returns the bytes that `of` asks for, with the spare slots and with what allocation rounds up."""
        slot = config.num_key_value_heads * config.head_dim * dtype.itemsize
        tensor = (num_blocks * block_size + 1) * slot
        return 2 * config.num_hidden_layers * (tensor + -tensor % ALIGNED)

    @staticmethod
    def bytes_per_token(config: ModelConfig, dtype: torch.dtype) -> int:
        """Returns the bytes that the keys and values of one position take in all layers."""
        return 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * dtype.itemsize

    def targets(self, slots: Tensor) -> Tensor:
        """Turns slot -1, which writes nothing, into the spare slot, without a branch: a CUDA graph can replay it."""
        return slots.remainder(self.num_blocks * self.block_size + 1)  # [T]
