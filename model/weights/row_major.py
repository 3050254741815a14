"""Holds the types that a GPU rounds weights to: rows in few bits, inputs contiguous, each expert a view of a stack."""

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.model.weights.grid import FINE_SCALE, divisor, fit, rounded
from octavo.model.weights.memory import Zeros, zeros_on
from octavo.model.weights.stack import Format, Shape, StackedWeight

ROW_GROUP = 128  # consecutive inputs that share a scale, if an output has several
WORDS = ROW_GROUP // 8  # words of 32 bits that hold a group in 4 bits
# Elements that are quantised at a time: a CPU's temporaries stay in its cache, and a GPU's launches are worth it.
ON_CPU, ON_GPU = 1 << 14, 1 << 24

Layout = tuple[tuple[tuple[int, ...], torch.dtype], ...]  # for each part of a weight


@dataclass(frozen=True, slots=True, eq=False)
class RowMajorWeight(StackedWeight):
    """A RowMajorWeight is a quantised matrix, output by output. It holds zeros until rows are put in.

    Quants lie along the inputs, in the order of multiplication. Scales lie along the outputs, because a kernel that is
    at some group reads the scales of its outputs in one piece.
    """

    held_as: ClassVar[Format]
    part_names: ClassVar[tuple[str, str]] = ("quants", "scales")  # in a Stack
    bytes_per_weight: ClassVar[float]
    levels: ClassVar[int]  # the largest multiple of a scale

    shape: Shape
    quants: Tensor  # [out, ...]
    scales: Tensor  # [groups, out, ...]

    @classmethod
    def pack(cls, dense: Tensor) -> Self:
        """Quantises dense [out, in] of any floating type, whose largest magnitude the type `holds`."""
        (weight,) = cls.stack(1, (dense.shape[0], dense.shape[1]), zeros_on(dense.device))
        weight.fill(dense, 0)
        return weight

    @classmethod
    def stack(cls, count: int, shape: Shape, zeros: Zeros) -> tuple[Self, ...]:
        """Allocates matrices of one shape as views of one tensor per part, which Stack.of puts together again."""
        parts = [zeros((count, *sizes), dtype) for sizes, dtype in cls.layout(*shape)]
        return tuple(cls(shape, *views) for views in zip(*(part.unbind() for part in parts), strict=True))

    @classmethod
    @abstractmethod
    def layout(cls, out: int, inputs: int) -> Layout:
        """Returns the shape and type of each part of a matrix [out, in]."""

    @classmethod
    def holds(cls, largest: float) -> bool:
        """Returns whether a scale in float32 serves a matrix of that largest magnitude."""
        return largest == 0 or cls.levels * torch.finfo(torch.float32).tiny <= largest < math.inf

    @property
    def format(self) -> Format:
        return self.held_as

    def tensors(self) -> dict[str, Tensor]:
        return dict(zip(self.part_names, (self.quants, self.scales), strict=True))

    def fill(self, rows: Tensor, first: int) -> None:
        """Quantises rows [n, in] of any floating type and device into the outputs from `first` on."""
        device = self.quants.device
        at_once = max(1, (ON_CPU if device.type == "cpu" else ON_GPU) // rows.shape[1])
        for start in range(first, first + len(rows), at_once):
            part = rows[start - first :][:at_once].to(device).float()
            quants, scales = self.quantise(part)
            self.quants[start : start + len(part)] = quants
            self.scales[:, start : start + len(part)] = scales.transpose(0, 1)

    @abstractmethod
    def quantise(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Quantises whole rows [n, in] float32 to quants [n, ...], scales [n, groups, ...]; waits for no device."""


@dataclass(frozen=True, slots=True, eq=False)
class PerOutputRowMajor(RowMajorWeight):
    """Has one scale for each output: weight = quant * scale; quants [out, in] of `dtype`, scales [1, out] float32."""

    part_names: ClassVar[tuple[str, str]] = ("quants", "factors")
    dtype: ClassVar[torch.dtype]
    bytes_per_weight: ClassVar[float] = 1.0

    @classmethod
    def layout(cls, out: int, inputs: int) -> Layout:
        return ((out, inputs), cls.dtype), ((1, out), torch.float32)

    def dense(self) -> Tensor:
        return self.quants.float() * self.scales.T


@dataclass(frozen=True, slots=True, eq=False)
class Int8RowMajor(PerOutputRowMajor):
    """Holds int8, symmetric.

    The relative error is 0.87% of the default model's experts and of normally distributed weights, 1.5% of Laplace's.
    """

    held_as: ClassVar[Format] = Format("int8")
    dtype: ClassVar[torch.dtype] = torch.int8
    levels: ClassVar[int] = 127

    def quantise(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        scales = rows.abs().amax(-1, keepdim=True) / self.levels
        return (rows / divisor(scales)).round_().clamp_(-self.levels, self.levels).to(self.dtype), scales


@dataclass(frozen=True, slots=True, eq=False)
class Int8GroupedRowMajor(RowMajorWeight):
    """Holds int8, symmetric, with a scale for each 128 inputs; the last group may be shorter.

    scales [in / 128, out] float32. The relative error is 0.69% of the default model's experts, 0.65% of normally
    distributed weights, 0.90% of Laplace's.
    """

    held_as: ClassVar[Format] = Format("int8", ROW_GROUP, "float32")
    bytes_per_weight: ClassVar[float] = 1 + 4 / ROW_GROUP
    levels: ClassVar[int] = 127

    @classmethod
    def layout(cls, out: int, inputs: int) -> Layout:
        return ((out, inputs), torch.int8), ((_groups(inputs), out), torch.float32)

    def quantise(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        groups = _grouped(rows)  # [n, groups, 128]
        scales = groups.abs().amax(-1) / self.levels
        quants = (groups / divisor(scales)[..., None]).round_().clamp_(-self.levels, self.levels)
        return quants.flatten(1)[:, : rows.shape[1]].to(torch.int8), scales

    def dense(self) -> Tensor:
        return (_grouped(self.quants.float()) * self.scales.T[..., None]).flatten(1)[:, : self.shape[1]]


@dataclass(frozen=True, slots=True, eq=False)
class Fp8RowMajor(PerOutputRowMajor):
    """Holds float8_e4m3fn (https://arxiv.org/abs/2209.05433).

    The relative error is 2.6% whatever the distribution, since the mantissa has three bits.
    """

    held_as: ClassVar[Format] = Format("fp8")
    dtype: ClassVar[torch.dtype] = torch.float8_e4m3fn
    levels: ClassVar[int] = 448

    def quantise(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        scales = rows.abs().amax(-1, keepdim=True) / self.levels
        # Beyond its range the conversion gives NaN, not the largest number.
        quants = (rows / divisor(scales)).clamp_(-self.levels, self.levels)
        return quants.to(self.dtype), scales


@dataclass(frozen=True, slots=True, eq=False)
class Int4RowMajor(RowMajorWeight):
    """Holds 4 bits in groups of 128 inputs: weight = quant * step + min; inputs are padded to whole groups.

    quants [out, groups * 16] int32: a word holds eight inputs. Each shift brings two neighbours to the ends of the
    mantissas of two 16-bit numbers, and 16 words that are shifted alike are 32 consecutive inputs:

        bits of word w   28-31      24-27     20-23     16-19    12-15    8-11     4-7      0-3         0 <= w < 16
        input            97 + 2w    65 + 2w   33 + 2w   1 + 2w   96 + 2w  64 + 2w  32 + 2w  2w

    scales [groups, out, 2] float16 are the step of the quants and the weight that quant 0 stands for. A kernel reads
    both as one word, and adds a group up as step * (sum of quant * x) + min * (sum of x).

    The relative error is 9.0% of the default model's experts (9.1% when shifted by 16 inputs, because they were
    quantised before, in groups of 32), 9.3% of normally distributed weights and 12.1% of Laplace's. The best whole zero
    points in place of mins lose 9.7, 9.7, 9.5 and 12.4%, a symmetric grid 11.2, 11.2, 10.6 and 14.4%.
    """

    held_as: ClassVar[Format] = Format("int4", ROW_GROUP, "float16", "minimum")
    bytes_per_weight: ClassVar[float] = 0.5 + 4 / ROW_GROUP
    levels: ClassVar[int] = 15

    @classmethod
    def layout(cls, out: int, inputs: int) -> Layout:
        groups = _groups(inputs)
        return ((out, groups * WORDS), torch.int32), ((groups, out, 2), torch.float16)

    @classmethod
    def holds(cls, largest: float) -> bool:
        """Returns whether scales in float16 serve a matrix of that largest magnitude: not infinite, not too coarse."""
        return largest == 0 or cls.levels * FINE_SCALE <= largest <= torch.finfo(torch.float16).max

    def quantise(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        groups = _grouped(rows)  # [n, groups, 128]
        steps, mins = fit(groups, self.levels)
        quants = rounded(groups, steps, mins, self.levels).to(torch.int32)
        return packed(quants), torch.stack((steps, mins), dim=-1)

    def dense(self) -> Tensor:
        quants = unpacked(self.quants)  # [out, groups, 128]
        steps, mins = self.scales.float().transpose(0, 1)[..., None].unbind(2)  # [out, groups, 1]
        return (quants * steps + mins).flatten(1)[:, : self.shape[1]]


def packed(quants: Tensor) -> Tensor:
    """Packs quants [n, groups, 128] int32 of 4 bits into words [n, groups * 16] int32, as Int4RowMajor shows them."""
    shifted = quants.unflatten(-1, (4, WORDS, 2)) << _shifts(quants.device)  # the bits of a word do not overlap
    return shifted.sum((-3, -1), dtype=torch.int32).flatten(1)


def unpacked(words: Tensor) -> Tensor:
    """Returns the quants [n, groups, 128] int32 of words [n, groups * 16]."""
    words = words.unflatten(-1, (-1, 1, WORDS, 1))  # [n, groups, 1, 16, 1]
    return (words >> _shifts(words.device) & 15).flatten(2)


def _shifts(device: torch.device) -> Tensor:
    """Returns where in its word an input has its bits, by its quarter of the group and its place in two: [4, 1, 2]."""
    return 4 * torch.arange(4, device=device)[:, None, None] + 16 * torch.arange(2, device=device)


def _groups(inputs: int) -> int:
    return -(-inputs // ROW_GROUP)


def _grouped(rows: Tensor) -> Tensor:
    """Reshapes [n, in] to [n, groups, 128]; zeros fill the last group up."""
    return F.pad(rows, (0, -rows.shape[1] % ROW_GROUP)).unflatten(-1, (-1, ROW_GROUP))
