"""Holds the small parts of a decoder layer: normalisation, rotary positions, token embeddings."""

import math
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.model.config import ModelConfig
from octavo.model.rope_config import Llama3Scaling, LongRopeScaling, YarnScaling


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
class LayerNorm:
    """Normalises by mean and variance (https://arxiv.org/abs/1607.06450), in float32."""

    weight: Tensor  # [H]
    bias: Tensor  # [H]
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        normed = F.layer_norm(x.float(), x.shape[-1:], self.weight.float(), self.bias.float(), self.eps)
        return normed.to(x.dtype)  # [T, H]


Norm = RMSNorm | LayerNorm


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
    amplitude: float = 1.0  # multiplies cosines and sines

    @classmethod
    def create(cls, config: ModelConfig, device: torch.device) -> "RotaryEmbedding":
        pairs = torch.arange(0, config.head_dim, 2, dtype=torch.float32)
        inv_freq = 1.0 / config.rope_theta ** (pairs / config.head_dim)
        match config.rope_scaling:
            case None:
                return cls(inv_freq.to(device))
            case Llama3Scaling() as scaling:
                return cls(_llama3(inv_freq, scaling).to(device))
            case YarnScaling() as scaling:
                return cls(_yarn(inv_freq, scaling, config.rope_theta).to(device), scaling.amplitude)
            case LongRopeScaling() as scaling:
                return cls((inv_freq / torch.tensor(scaling.factors)).to(device), scaling.amplitude)

    def at(self, positions: Tensor) -> Rotation:
        angles = positions[:, None, None].float() * self.inv_freq  # [T, 1, D/2]
        cos, sin = angles.cos() * self.amplitude, angles.sin() * self.amplitude
        return Rotation(torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1))


def _yarn(inv_freq: Tensor, scaling: YarnScaling, theta: float) -> Tensor:
    """Returns YaRN's frequencies (https://arxiv.org/abs/2309.00071, section 3.2).

    A pair that turns beta_fast times or more within the original context keeps its frequency. One that turns beta_slow
    times or less has it divided by the factor. Between the two the share goes along the pairs in a straight line.
    """

    def pair_of(turns: float) -> float:
        """Returns the pair, as a fraction, that turns so often within the original context."""
        length = scaling.original_max_position_embeddings
        return len(inv_freq) * math.log(length / (turns * 2 * math.pi)) / math.log(theta)

    first, last = pair_of(scaling.beta_fast), pair_of(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, 2 * len(inv_freq) - 1)
    span = last - first if last != first else 0.001
    stretched = ((torch.arange(len(inv_freq), dtype=torch.float32) - first) / span).clamp(0, 1)
    return inv_freq / scaling.factor * stretched + inv_freq * (1 - stretched)  # [D/2]


def _llama3(inv_freq: Tensor, scaling: Llama3Scaling) -> Tensor:
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
    multiplier: float = 1.0

    def __call__(self, tokens: Tensor) -> Tensor:
        looked_up = self.table[tokens].to(self.dtype)  # [T, H]
        return looked_up if self.multiplier == 1 else looked_up * self.multiplier
