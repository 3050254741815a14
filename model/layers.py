"""The small parts of a decoder layer: normalisation, rotary positions, token embeddings."""

from dataclasses import dataclass

import torch
from torch import Tensor

from model.config import ModelConfig


@dataclass(frozen=True, slots=True)
class RMSNorm:
    """Root-mean-square normalisation (https://arxiv.org/abs/1910.07467), computed in float32."""

    weight: Tensor  # [H]
    root_eps: Tensor  # [] float32, the square root of epsilon

    @classmethod
    def create(cls, weight: Tensor, eps: float) -> "RMSNorm":
        return cls(weight, torch.tensor(eps**0.5, device=weight.device))

    def __call__(self, x: Tensor) -> Tensor:
        wide = x.float()
        length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)  # [T, 1]
        # sqrt(mean(x^2) + eps) as the hypotenuse of two roots: half the operations of the usual spelling.
        rms = torch.hypot(length * wide.shape[-1] ** -0.5, self.root_eps)
        return self.weight * (wide / rms).to(x.dtype)  # [T, H]


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
