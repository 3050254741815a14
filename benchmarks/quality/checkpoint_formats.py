"""Rounds experts to the grids of quantised checkpoints, by rounding each weight to the nearest number.

Tools such as GPTQ and AWQ choose numbers by what a text makes of them, and so lose less than this: it shows what the
grids themselves cost.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.quality.peer_formats import shuffled
from octavo.model.loading.quantised.mxfp4 import VALUES as E2M1

# The values of NF4 (https://arxiv.org/abs/2305.14314, appendix E).
NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
    *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
    *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


@dataclass(frozen=True, slots=True)
class Grid:
    """A Grid is how a format rounds groups of weights."""

    bytes_per_weight: float
    group: int  # inputs; 0: all of an output
    nearest: Callable[[Tensor], Tensor]  # maps groups [n, group] to their rounded weights

    def round(self, dense: Tensor) -> None:
        """Rounds a matrix [out, in] in place, in groups of inputs that were not neighbours."""
        order = shuffled(dense.shape[1])
        size = self.group or dense.shape[1]
        for rows in dense.split(1024):
            mixed = rows[:, order]
            short = -mixed.shape[1] % size
            groups = torch.nn.functional.pad(mixed, (0, short)).view(-1, size)
            rows[:, order] = self.nearest(groups).view(len(rows), -1)[:, : dense.shape[1]]


def symmetric(bits: int) -> Callable[[Tensor], Tensor]:
    """Returns what rounds to whole steps on both sides of 0, with a scale in float16."""
    most = 2 ** (bits - 1) - 1

    def nearest(groups: Tensor) -> Tensor:
        scales = _float16(groups.abs().amax(-1, keepdim=True) / most)
        return (groups / scales).round().clamp(-most - 1, most) * scales

    return nearest


def asymmetric(bits: int) -> Callable[[Tensor], Tensor]:
    """Returns what rounds to whole steps from a zero point, with a scale in float16."""
    levels = 2**bits - 1

    def nearest(groups: Tensor) -> Tensor:
        low, high = groups.amin(-1, keepdim=True).clamp(max=0), groups.amax(-1, keepdim=True).clamp(min=0)
        scales = _float16((high - low) / levels)
        zeros = (-low / scales).round()
        return ((groups / scales).round() + zeros).clamp(0, levels).sub(zeros) * scales

    return nearest


def fp8(groups: Tensor) -> Tensor:
    """Rounds to float8_e4m3fn with a scale in float32."""
    scales = groups.abs().amax(-1, keepdim=True).clamp(min=1e-30) / 448
    return (groups / scales).to(torch.float8_e4m3fn).float() * scales


def nf4(groups: Tensor) -> Tensor:
    """Rounds to NF4 with a factor in float32."""
    factors = groups.abs().amax(-1, keepdim=True).clamp(min=1e-30)
    return _in_table(groups / factors, torch.tensor(NF4)) * factors


def mxfp4(groups: Tensor) -> Tensor:
    """Rounds to E2M1 with a power of two, the largest with which no weight is beyond 6 by more than its rounding."""
    exponents = groups.abs().amax(-1, keepdim=True).clamp(min=1e-30).log2().floor() - 2
    return _in_table(groups / exponents.exp2(), torch.tensor(sorted(set(E2M1))) / 2) * exponents.exp2()


def _in_table(values: Tensor, table: Tensor) -> Tensor:
    return table[torch.bucketize(values, (table[1:] + table[:-1]) / 2)]


def _float16(scales: Tensor) -> Tensor:
    return scales.half().float().clamp(min=6e-8)


CHECKPOINT_FORMATS = {
    "gptq-4-128": Grid(0.5 + 2.5 / 128, 128, symmetric(4)),
    "gptq-4-32": Grid(0.5 + 2.5 / 32, 32, symmetric(4)),
    "gptq-8-128": Grid(1 + 3 / 128, 128, symmetric(8)),
    "awq-128": Grid(0.5 + 2.5 / 128, 128, asymmetric(4)),
    "int-quantized": Grid(1.0, 0, symmetric(8)),
    "fp8": Grid(1.0, 0, fp8),
    "fp8-block-128": Grid(1.0, 128, fp8),
    "nf4": Grid(0.5 + 4 / 64, 64, nf4),
    "mxfp4": Grid(0.5 + 1 / 32, 32, mxfp4),
}
