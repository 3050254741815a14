"""The small parts of a decoder layer: normalisation, rotary positions, token embeddings."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from model.config import ModelConfig


@dataclass(frozen=True, slots=True)
class RMSNorm:
    """Root-mean-square normalisation (https://arxiv.org/abs/1910.07467), computed in float32."""

    weight: Tensor  # [H]
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        normed = F.rms_norm(x.float(), x.shape[-1:], eps=self.eps)
        return self.weight * normed.to(x.dtype)  # [T, H]


@dataclass(frozen=True, slots=True)
class Rotation:
    """The rotary angles of one step's positions; float32, whatever the activations are."""

    cos: Tensor  # [T, 1, D]
    sin: Tensor  # [T, 1, D], the first half negated

    def __call__(self, heads: Tensor) -> Tensor:
        """Rotates heads [T, any, D] in pairs (i, i + D/2), as transformers lays them out."""
        swapped = heads.roll(heads.shape[-1] // 2, -1)
        return torch.addcmul(heads * self.cos, swapped, self.sin).to(heads.dtype)


@dataclass(frozen=True, slots=True)
class RotaryEmbedding:
    """Rotary position embedding (https://arxiv.org/abs/2104.09864)."""

    inv_freq: Tensor  # [D/2] float32

    @classmethod
    def create(cls, config: ModelConfig, device: torch.device) -> "RotaryEmbedding":
        pairs = torch.arange(0, config.head_dim, 2, dtype=torch.float32)
        return cls((1.0 / config.rope_theta ** (pairs / config.head_dim)).to(device))

    def at(self, positions: Tensor) -> Rotation:
        angles = positions[:, None, None].float() * self.inv_freq  # [T, 1, D/2]
        cos, sin = angles.cos(), angles.sin()
        return Rotation(torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1))


@dataclass(frozen=True, slots=True)
class Embedding:
    """The token table, kept in the precision it is stored in."""

    table: Tensor  # [V, H]
    dtype: torch.dtype  # of the activations

    def __call__(self, tokens: Tensor) -> Tensor:
        return self.table[tokens].to(self.dtype)  # [T, H]
