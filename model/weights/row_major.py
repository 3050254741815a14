"""Holds the weight types of a GPU: rows in few bits, inputs contiguous, each expert a view of its layer's stack."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.model.weights.grid import FINE_SCALE, divisor, fit, rounded
from octavo.model.weights.memory import Zeros, zeros_on

ROW_GROUP = 128  # consecutive inputs that share a scale, if an output has several
WORDS = ROW_GROUP // 8  # words of 32 bits that hold a group in 4 bits
# Elements that are quantised at a time: a CPU's temporaries stay in its cache, and a GPU's launches are worth it.
ON_CPU, ON_GPU = 1 << 14, 1 << 24

Shape = tuple[int, int]  # (out, in)
Layout = tuple[tuple[tuple[int, ...], torch.dtype], ...]  # for each part of a weight


@dataclass(frozen=True, slots=True, eq=False)
class RowMajorWeight(ABC):
    """A RowMajorWeight is a quantised matrix, output by output. It holds zeros until rows are put in.

    Quants lie along the inputs, in the order of multiplication. Scales lie along the outputs, because a kernel that is
    at some group reads the scales of its outputs in one piece.
    """

    kind: ClassVar[str]  # its name in the kernels
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

    def parts(self) -> tuple[Tensor, Tensor]:
        """Returns the tensors that hold it, in the order of `layout`."""
        return self.quants, self.scales

    @property
    def nbytes(self) -> int:
        """Returns the bytes it takes."""
        return sum(part.nbytes for part in self.parts())

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

    @abstractmethod
    def dense(self) -> Tensor:
        """Returns the rounded weights as float32 [out, in]."""


@dataclass(frozen=True, slots=True, eq=False)
class PerOutputRowMajor(RowMajorWeight):
    """Has one scale for each output: weight = quant * scale; quants [out, in] of `dtype`, scales [1, out] float32."""

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

    kind: ClassVar[str] = "int8"
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

    kind: ClassVar[str] = "int8"
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

    kind: ClassVar[str] = "fp8"
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

    kind: ClassVar[str] = "int4"
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
        shifted = quants.unflatten(-1, (4, WORDS, 2)) << _shifts(quants.device)  # the bits of a word do not overlap
        return shifted.sum((-3, -1), dtype=torch.int32).flatten(1), torch.stack((steps, mins), dim=-1)

    def dense(self) -> Tensor:
        words = self.quants.unflatten(-1, (-1, 1, WORDS, 1))  # [out, groups, 1, 16, 1]
        quants = (words >> _shifts(words.device) & 15).flatten(2)  # [out, groups, 128]
        steps, mins = self.scales.float().transpose(0, 1)[..., None].unbind(2)  # [out, groups, 1]
        return (quants * steps + mins).flatten(1)[:, : self.shape[1]]


@dataclass(frozen=True, slots=True, eq=False)
class Stack:
    """A Stack is what a kernel reads: all experts of one projection, of one shape, in one tensor per part."""

    kind: str  # bf16, fp16, fp32, int8, int4 or fp8
    shape: Shape  # (out, in), each expert's
    quants: Tensor  # [E, out, in], [E, out, groups * 16] for int4
    scales: Tensor | None = None  # [E, groups, out], [E, groups, out, 2] for int4; None: the weights themselves

    @classmethod
    def of(cls, weights: Sequence[object]) -> "Stack":
        """Joins E views that the loader has made, and copies nothing. Raises ValueError if they are not one stack."""
        first = weights[0]
        if isinstance(first, Tensor) and first.dtype in PLAIN:
            return cls(PLAIN[first.dtype], (first.shape[0], first.shape[1]), _joined(weights))
        if isinstance(first, RowMajorWeight) and all(isinstance(weight, type(first)) for weight in weights):
            parts = zip(*(weight.parts() for weight in weights if isinstance(weight, RowMajorWeight)), strict=True)
            return cls(first.kind, first.shape, *(_joined(part) for part in parts))
        raise ValueError(f"{type(first).__name__} weights cannot be stacked")


PLAIN = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


def _joined(views: Sequence[object]) -> Tensor:
    """Joins views [...] that lie one behind the other to one tensor [E, ...]. Raises ValueError for others."""
    first = views[0]
    assert isinstance(first, Tensor)
    for number, view in enumerate(views):
        if not (isinstance(view, Tensor) and _follows(view, first, number)):
            raise ValueError("the matrices are not consecutive views of one tensor")
    return first.as_strided((len(views), *first.shape), (first.numel(), *first.stride()))


def _follows(view: Tensor, first: Tensor, number: int) -> bool:
    """Returns whether a view is the number-th of its size from the first one on."""
    return (
        view.is_contiguous()
        and (view.shape, view.dtype, view.device) == (first.shape, first.dtype, first.device)
        and view.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        and view.storage_offset() == first.storage_offset() + number * first.numel()
    )


def _shifts(device: torch.device) -> Tensor:
    """Returns where in its word an input has its bits, by its quarter of the group and its place in two: [4, 1, 2]."""
    return 4 * torch.arange(4, device=device)[:, None, None] + 16 * torch.arange(2, device=device)


def _groups(inputs: int) -> int:
    return -(-inputs // ROW_GROUP)


def _grouped(rows: Tensor) -> Tensor:
    """Reshapes [n, in] to [n, groups, 128]; zeros fill the last group up."""
    return F.pad(rows, (0, -rows.shape[1] % ROW_GROUP)).unflatten(-1, (-1, ROW_GROUP))
