"""Weight types of a CPU: what a matrix is held as, how it is packed, and how it is unpacked again."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from model.grid import FINE_SCALE, divisor, fit, rounded
from model.memory import Zeros, zeros_on
from model.rows import RowWeight

# What a weight may lose when it is stored in float16: rounding costs 3e-4, more means subnormal numbers.
FP16_TOLERANCE = 1e-3
CHECKED, QUANTISED = 1 << 16, 1 << 14  # elements at a time: the temporaries stay in the CPU's cache

GROUP = 32  # consecutive inputs that share a scale
TILE = 16  # outputs that are computed together: one register of 32-bit sums
ALIGNED = 2 * TILE  # outputs are held in whole pairs of tiles


@dataclass(frozen=True, slots=True, eq=False)
class Fp16Weight:
    """A matrix in float16, in the tiles of FBGEMM's mixed-precision product with float32 activations; x86 only."""

    bytes_per_weight: ClassVar[float] = 2.0

    packed: Any  # torch.ScriptObject, opaque
    shape: tuple[int, int]  # (out, in)

    @classmethod
    def pack(cls, dense: Tensor) -> "Fp16Weight":
        """Rounds dense [out, in] float32, which fits_fp16; seconds per billion weights, on one thread."""
        return cls(torch.ops.quantized.linear_prepack_fp16(dense, None), (dense.shape[0], dense.shape[1]))

    @property
    def nbytes(self) -> int:
        """Memory it takes: the tiles are 16 outputs by 512 inputs, and the last ones are held whole."""
        out, inputs = self.shape
        return 2 * _round_up(out, 16) * _round_up(inputs, 512)

    def dense(self) -> Tensor:
        """The rounded weights as float32 [out, in]."""
        return torch.ops.quantized.linear_unpack_fp16(self.packed)[0].float()


Place = tuple[Tensor, Tensor]  # of rows: their tiles, and their outputs within the tile; both [n]


@dataclass(frozen=True, slots=True)
class Tiling:
    """Where the rows of a quantised matrix lie: in tiles of 16 outputs, along which the inputs run in groups of 32.

    The rows are padded with zeros to whole pairs of tiles, the inputs to whole groups. Where two halves are multiplied
    elementwise (gate above up), their tiles alternate, so that one pass over the weights has both factors:

        plain          rows  0-15 | 16-31 | 32-47 | ...
        interleaved    gate  0-15 | up 0-15 | gate 16-31 | up 16-31 | ...      each half padded for itself
    """

    shape: tuple[int, int]  # (out, in)
    interleaved: bool = False  # the upper half of the rows with the lower half

    @property
    def tiles(self) -> int:
        halves = 2 if self.interleaved else 1
        return halves * _round_up(self.shape[0] // halves, ALIGNED) // TILE

    @property
    def groups(self) -> int:
        return _round_up(self.shape[1], GROUP) // GROUP

    @property
    def parts(self) -> tuple[int, int, int]:
        """Of something that each group of each output has one of."""
        return (self.tiles, self.groups, TILE)

    def places(self, first: int, count: int) -> Place:
        """Where `count` rows from `first` on are."""
        rows = torch.arange(first, first + count)
        if not self.interleaved:
            return rows // TILE, rows % TILE
        half = self.shape[0] // 2
        return rows % half // TILE * 2 + rows // half, rows % half % TILE


@dataclass(frozen=True, slots=True)
class Unpacked:
    """A quantised matrix without its tiles, in the order of its rows: weight = quant * scale (+ min)."""

    quants: Tensor  # [out, groups, 32] float32, whole numbers
    scales: Tensor  # [out, groups] float32
    mins: Tensor | None = None  # [out, groups] float32

    def dense(self) -> Tensor:
        """[out, groups * 32] float32; exact, but for the sum with a min."""
        values = self.quants * self.scales[..., None]
        return (values if self.mins is None else values + self.mins[..., None]).flatten(1)


@dataclass(frozen=True, slots=True, eq=False)
class GroupedWeight(ABC):
    """A matrix in few bits, with scales of its own for each 32 inputs of an output; empty until rows are put in."""

    levels: ClassVar[int]  # the largest multiple of a scale

    tiling: Tiling
    quants: Tensor  # uint8, in the tiles of the type
    scales: Tensor  # [tiles, groups, 16] float16
    # How many int8 numbers the kernels make of each activation: 1, or 2, where the second is what rounding left of the
    # first. With one, the neighbours of an activation that is much larger than they are would round to nothing.
    terms: int = field(default=1, kw_only=True)

    @classmethod
    def pack(cls, dense: Tensor, interleaved: bool = False, terms: int = 1) -> Self:
        """Quantises dense [out, in] of any floating type, whose largest magnitude the type `holds`."""
        weight = cls.empty(Tiling((dense.shape[0], dense.shape[1]), interleaved), zeros_on(dense.device), terms)
        weight.fill(dense, 0)
        return weight

    @classmethod
    @abstractmethod
    def empty(cls, tiling: Tiling, zeros: Zeros, terms: int = 1) -> Self:
        """All zeros, because all scales are."""

    @classmethod
    def holds(cls, largest: float) -> bool:
        """Whether scales in float16 serve a matrix of that largest magnitude: not infinite, no crude subnormals."""
        return largest == 0 or cls.levels * FINE_SCALE <= largest <= torch.finfo(torch.float16).max

    @property
    def shape(self) -> tuple[int, int]:
        return self.tiling.shape

    @property
    def nbytes(self) -> int:
        """Memory it takes."""
        return self.quants.nbytes + self.scales.nbytes

    def fill(self, rows: Tensor, first: int) -> None:
        """Quantises rows [n, in] of any floating type into the outputs from `first` on; slow and obvious."""
        at_once = max(1, QUANTISED // rows.shape[1])
        for start in range(0, rows.shape[0], at_once):
            part = rows[start : start + at_once].to(self.quants.device, torch.float32)
            groups = F.pad(part, (0, self.tiling.groups * GROUP - part.shape[1])).unflatten(1, (-1, GROUP))
            self._store(groups, self.tiling.places(first + start, len(part)))

    @abstractmethod
    def _store(self, groups: Tensor, place: Place) -> None:
        """Quantises whole rows, [n, groups, 32] float32."""

    @abstractmethod
    def unpacked(self) -> Unpacked:
        """What is held, in the order of the matrix."""

    def dense(self) -> Tensor:
        """The rounded weights as float32 [out, in]."""
        return self.unpacked().dense()[:, : self.shape[1]]


@dataclass(frozen=True, slots=True, eq=False)
class Int8Weight(GroupedWeight):
    """A matrix in int8, symmetric: weight = (quant - 128) * scale; quants [tiles, groups * 8, 16, 4].

    Four consecutive inputs of the 16 outputs of a tile are 64 bytes, an operand of VNNI's dot products.
    """

    bytes_per_weight: ClassVar[float] = 1 + 2 / GROUP
    levels: ClassVar[int] = 127

    @classmethod
    def empty(cls, tiling: Tiling, zeros: Zeros, terms: int = 1) -> Self:
        quants = zeros((tiling.tiles, tiling.groups * 8, TILE, 4), torch.uint8)
        return cls(tiling, quants, zeros(tiling.parts, torch.float16), terms=terms)

    def _store(self, groups: Tensor, place: Place) -> None:
        scales = (groups.abs().amax(-1) / self.levels).half()  # [n, groups]
        quants = (groups / divisor(scales.float())[..., None]).round_().clamp_(-self.levels, self.levels) + 128
        self.quants.transpose(1, 2)[place] = quants.to(torch.uint8).view(len(groups), -1, 4)
        self.scales.transpose(1, 2)[place] = scales

    def unpacked(self) -> Unpacked:
        place = self.tiling.places(0, self.shape[0])
        quants = self.quants.transpose(1, 2)[place].float() - 128  # [out, groups * 8, 4]
        return Unpacked(quants.view(self.shape[0], -1, GROUP), self.scales.transpose(1, 2)[place].float())


@dataclass(frozen=True, slots=True, eq=False)
class Int4Weight(GroupedWeight):
    """A matrix in 4 bits: weight = quant * scale + min; quants [tiles, groups, 4, 16, 4].

    A group is eight slices of four inputs. A byte holds an input of slice s < 4 in its low half and the same of slice
    s + 4 in its high half: masked or shifted, 64 bytes are an operand of VNNI's dot products, as in Int8Weight.
    """

    bytes_per_weight: ClassVar[float] = 0.5 + 4 / GROUP
    levels: ClassVar[int] = 15

    mins: Tensor  # [tiles, groups, 16] float16

    @classmethod
    def empty(cls, tiling: Tiling, zeros: Zeros, terms: int = 1) -> Self:
        quants = zeros((tiling.tiles, tiling.groups, 4, TILE, 4), torch.uint8)
        return cls(tiling, quants, zeros(tiling.parts, torch.float16), zeros(tiling.parts, torch.float16), terms=terms)

    @property
    def nbytes(self) -> int:
        return self.quants.nbytes + self.scales.nbytes + self.mins.nbytes

    def _store(self, groups: Tensor, place: Place) -> None:
        scales, mins = fit(groups, self.levels)  # [n, groups]
        quants = rounded(groups, scales, mins, self.levels).to(torch.uint8)
        lower, upper = quants.view(*scales.shape, 2, 4, 4).unbind(2)  # [n, groups, slice, input]
        self.quants.permute(0, 3, 1, 2, 4)[place] = lower | upper << 4
        self.scales.transpose(1, 2)[place] = scales.half()
        self.mins.transpose(1, 2)[place] = mins.half()

    def unpacked(self) -> Unpacked:
        place = self.tiling.places(0, self.shape[0])
        pairs = self.quants.permute(0, 3, 1, 2, 4)[place]  # [out, groups, slice, input]
        quants = torch.stack((pairs & 15, pairs >> 4), dim=2).float().flatten(2)
        scales, mins = (values.transpose(1, 2)[place].float() for values in (self.scales, self.mins))
        return Unpacked(quants, scales, mins)


Weight = Tensor | Fp16Weight | Int8Weight | Int4Weight | RowWeight
# A dtype: of a plain Tensor.
Kind = torch.dtype | type[Fp16Weight] | type[Int8Weight] | type[Int4Weight] | type[RowWeight]


@dataclass(frozen=True, slots=True)
class ExpertWeights:
    """One layer's experts; where the weights are plain tensors, each tuple holds the views of one stacked tensor."""

    gate_up: tuple[Weight, ...]  # E of [2I, H]: w1 above w3
    down: tuple[Weight, ...]  # E of [H, I]: w2


def _round_up(size: int, step: int) -> int:
    return -(-size // step) * step


def fits_fp16(dense: Tensor) -> bool:
    """Whether float16 holds dense (contiguous, float32, finite) up to FP16_TOLERANCE of its norm."""
    low, high = torch.aminmax(dense)
    if max(-low.item(), high.item()) > torch.finfo(torch.float16).max:
        return False
    total = torch.linalg.vector_norm(dense).item() ** 2
    allowed = FP16_TOLERANCE**2 * total
    # Rounding costs a normal number at most 2^-11 of itself and a subnormal one 2^-25: for most matrices that will do.
    if 2.0**-22 * total + 2.0**-50 * dense.numel() <= allowed:
        return True
    parts = dense.view(-1).split(CHECKED)
    return sum((part - part.half()).square().sum().item() for part in parts) <= allowed
