"""Holds the small parts of a decoder layer: normalisation, rotary positions, token embeddings."""

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from octavo.model.config import ModelConfig, RopeScaling


@dataclass(frozen=True, slots=True)
class RMSNorm:
    """Normalises by the root mean square (https://arxiv.org/abs/1910.07467), in float32."""

    weight: Tensor  # [H]
    root_eps: Tensor  # [] float32, the square root of epsilon

    @classmethod
    def create(cls, weight: Tensor, eps: float) -> Self:
        return cls(weight, torch.tensor(eps**0.5, device=weight.device))

    def __call__(self, x: Tensor) -> Tensor:
        wide = x.float()
        length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)  # [T, 1]
        # sqrt(mean(x^2) + eps) is the hypotenuse of two roots; this takes half the operations of the usual spelling.
        rms = torch.hypot(length * wide.shape[-1] ** -0.5, self.root_eps)
        return self.weight * (wide / rms).to(x.dtype)  # [T, H]


@dataclass(frozen=True, slots=True)
class RowNorm(RMSNorm):
    """Normalises each row by itself, because a GPU's sum of a row depends on how many rows there are."""

    def __call__(self, x: Tensor) -> Tensor:
        return torch.cat([RMSNorm.__call__(self, row) for row in x.split(1)])  # [T, H]


@dataclass(frozen=True, slots=True)
class Rotation:
    """A Rotation holds the rotary angles of a batch's positions, in float32 whatever the activations are."""

    cos: Tensor  # [T, 1, D]
    sin: Tensor  # [T, 1, D], the first half negated

    def __call__(self, heads: Tensor) -> Tensor:
        """Rotates heads [T, any, D] in pairs (i, i + D/2), which is how transformers lays them out."""
        swapped = heads.roll(heads.shape[-1] // 2, -1)
        return torch.addcmul(heads * self.cos, swapped, self.sin).to(heads.dtype)


@dataclass(frozen=True, slots=True)
class RotaryEmbedding:
    """Computes rotary position embeddings (https://arxiv.org/abs/2104.09864)."""

    inv_freq: Tensor  # [D/2] float32

    @classmethod
    def create(cls, config: ModelConfig, device: torch.device) -> "RotaryEmbedding":
        pairs = torch.arange(0, config.head_dim, 2, dtype=torch.float32)
        inv_freq = 1.0 / config.rope_theta ** (pairs / config.head_dim)
        return cls((inv_freq if config.rope_scaling is None else _stretched(inv_freq, config.rope_scaling)).to(device))

    def at(self, positions: Tensor) -> Rotation:
        angles = positions[:, None, None].float() * self.inv_freq  # [T, 1, D/2]
        cos, sin = angles.cos(), angles.sin()
        return Rotation(torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1))


def _stretched(inv_freq: Tensor, scaling: RopeScaling) -> Tensor:
    """Returns Llama 3.1's frequencies (https://arxiv.org/abs/2407.21783; Meta's llama-models, `apply_scaling`).

    A pair that turns often within the original context keeps its frequency. One that turns seldom has it divided by the
    factor. Between the two bounds the frequency goes from one to the other in a straight line:

        turns       0 .. low_freq_factor .. high_freq_factor ..
        kept        0    0                  1                1
    """
    turns = inv_freq * (scaling.original_max_position_embeddings / (2 * math.pi))
    kept = ((turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)).clamp(0, 1)
    return inv_freq * (kept + (1 - kept) / scaling.factor)  # [D/2]


@dataclass(frozen=True, slots=True)
class Embedding:
    """Looks tokens up in their table, which keeps the precision it was stored in."""

    table: Tensor  # [V, H]
    dtype: torch.dtype  # the activations'

    def __call__(self, tokens: Tensor) -> Tensor:
        return self.table[tokens].to(self.dtype)  # [T, H]
