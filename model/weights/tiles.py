"""Holds the quantised weight types of a CPU: how a matrix lies in tiles, is packed and is unpacked again."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.model.weights.grid import FINE_SCALE, divisor, fit, rounded
from octavo.model.weights.memory import Zeros, zeros_on

QUANTISED = 1 << 14  # elements quantised at a time: the temporaries stay in the CPU's cache

TILE_GROUP = 32  # consecutive inputs that share a scale
TILE = 16  # outputs that are computed together: one register of 32-bit sums
TILES = 4  # tiles in a panel
PANEL = TILES * TILE  # outputs
CELL = 2 * TILE_GROUP  # inputs
NUMBERS = 2 * 2 * TILE  # bytes of a cell's scales, or of its mins: whole lines of a cache
BLOCK = 16  # most cells in a block: their activations and a tile's weights fit into a CPU's first cache


Place = tuple[Tensor, Tensor, Tensor]  # panel, tile and output within the tile of n rows, [n] each


@dataclass(frozen=True, slots=True)
class TileLayout:
    """A TileLayout places the rows of a quantised matrix in panels of 4 tiles of 16 outputs, read from end to end.

    A tile is cut along the inputs into cells of two groups, and a panel into blocks of a few cells of each tile. So the
    activations that a block's first tile is multiplied with are still at hand for the other three.

        panel    block 0                                  | block 1          | ...
        block    cells of tile 0 | of tile 1 | 2 | 3      | of tile 0 | ...
        cell     scales (mins) of both groups, quants of both groups

    Rows and inputs are padded with zeros to whole panels and cells. If two halves are multiplied elementwise (gate
    above up), their tiles alternate, so that a panel has both factors of 32 results:

        plain          rows  0-15 | 16-31 | 32-47 | ...
        interleaved    gate  0-15 | up 0-15 | gate 16-31 | up 16-31 | ...      each half is padded for itself
    """

    shape: tuple[int, int]  # (out, in)
    interleaved: bool = False  # the upper half of the rows with the lower half

    @property
    def panels(self) -> int:
        halves = 2 if self.interleaved else 1
        return halves * _round_up(self.shape[0] // halves, PANEL) // PANEL

    @property
    def groups(self) -> int:
        return _round_up(self.shape[1], CELL) // TILE_GROUP

    @property
    def block(self) -> int:
        """Returns the number of cells of a tile in a block; all blocks have the same."""
        cells = self.groups // 2
        return next(block for block in range(BLOCK, 0, -1) if cells % block == 0)

    @property
    def cells(self) -> tuple[int, int, int, int]:
        """Returns the sizes [panels, blocks, tiles, cells]."""
        return (self.panels, self.groups // 2 // self.block, TILES, self.block)

    def places(self, first: int, count: int) -> Place:
        """Returns the places of `count` rows from `first` on."""
        rows = torch.arange(first, first + count)
        tiles = rows // TILE
        if self.interleaved:
            half = self.shape[0] // 2
            rows, lower = rows % half, rows // half
            tiles = rows // TILE * 2 + lower
        return tiles // TILES, tiles % TILES, rows % TILE


@dataclass(frozen=True, slots=True)
class Unpacked:
    """An Unpacked is a quantised matrix in the order of its rows, without tiles: weight = quant * scale (+ min)."""

    quants: Tensor  # [out, groups, 32] float32, whole numbers
    scales: Tensor  # [out, groups] float32
    mins: Tensor | None = None  # [out, groups] float32

    def dense(self) -> Tensor:
        """Returns [out, groups * 32] float32, which is exact except for the sum with a min."""
        values = self.quants * self.scales[..., None]
        return (values if self.mins is None else values + self.mins[..., None]).flatten(1)


@dataclass(frozen=True, slots=True, eq=False)
class GroupedWeight(ABC):
    """A GroupedWeight is a matrix in few bits with a scale for each group of an output. It is 0 until it is filled."""

    bytes_per_weight: ClassVar[float]
    levels: ClassVar[int]  # the largest multiple of a scale

    layout: TileLayout
    cells: Tensor  # [panels, blocks, tiles, cells, bytes] uint8
    # The kernels make 1 or 2 int8 numbers of each activation; the second is what rounding left of the first. With one,
    # the neighbours of a much larger activation would round to nothing.
    terms: int = field(default=1, kw_only=True)

    @classmethod
    def pack(cls, dense: Tensor, interleaved: bool = False, terms: int = 1) -> Self:
        """Quantises dense [out, in] of any floating type, whose largest magnitude the type `holds`."""
        weight = cls.empty(TileLayout((dense.shape[0], dense.shape[1]), interleaved), zeros_on(dense.device), terms)
        weight.fill(dense, 0)
        return weight

    @classmethod
    def empty(cls, layout: TileLayout, zeros: Zeros, terms: int = 1) -> Self:
        """Allocates a matrix of zeros, since all scales are 0."""
        return cls(layout, zeros((*layout.cells, round(cls.bytes_per_weight * CELL * TILE)), torch.uint8), terms=terms)

    @classmethod
    def holds(cls, largest: float) -> bool:
        """Returns whether scales in float16 serve a matrix of that largest magnitude: not infinite, not too coarse."""
        return largest == 0 or cls.levels * FINE_SCALE <= largest <= torch.finfo(torch.float16).max

    @property
    def shape(self) -> tuple[int, int]:
        return self.layout.shape

    @property
    def nbytes(self) -> int:
        """Returns the bytes it takes."""
        return self.cells.nbytes

    def fill(self, rows: Tensor, first: int) -> None:
        """Quantises rows [n, in] of any floating type into the outputs from `first` on, in a slow and obvious way."""
        at_once = max(1, QUANTISED // rows.shape[1])
        for start in range(0, rows.shape[0], at_once):
            part = rows[start : start + at_once].to(self.cells.device, torch.float32)
            groups = F.pad(part, (0, self.layout.groups * TILE_GROUP - part.shape[1])).unflatten(1, (-1, TILE_GROUP))
            self._store(groups, self.layout.places(first + start, len(part)))

    @abstractmethod
    def _store(self, groups: Tensor, place: Place) -> None:
        """Quantises whole rows, [n, groups, 32] float32, into their places."""

    @abstractmethod
    def unpacked(self) -> Unpacked:
        """Returns what is held, in the order of the matrix."""

    def dense(self) -> Tensor:
        """Returns the rounded weights as float32 [out, in]."""
        return self.unpacked().dense()[:, : self.shape[1]]

    def _numbers(self, n: int) -> Tensor:
        """Returns the n-th float16 number that each group has for an output, as a view of the cells.

        The view is [panels, tiles, 16, blocks, cells, 2] and is indexed with a Place.
        """
        numbers = self.cells[..., n * NUMBERS : (n + 1) * NUMBERS].view(torch.float16).unflatten(-1, (2, TILE))
        return numbers.permute(0, 2, 5, 1, 3, 4)

    def _slices(self, numbers: int) -> Tensor:
        """Returns the quants, which come behind so many numbers, as a view of the cells; four bytes are a slice.

        The view is [panels, tiles, 16, blocks, cells, 2, slices, 4] and is indexed with a Place.
        """
        slices = self.cells[..., numbers * NUMBERS :].unflatten(-1, (2, -1, TILE, 4))
        return slices.permute(0, 2, 6, 1, 3, 4, 5, 7)


@dataclass(frozen=True, slots=True, eq=False)
class Int8Weight(GroupedWeight):
    """An Int8Weight is a matrix in int8, symmetric: weight = (quant - 128) * scale.

    A cell holds scales [2, 16] float16 and quants [2, 8, 16, 4] uint8. Four consecutive inputs of the 16 outputs of
    a tile are 64 bytes, an operand of VNNI's dot products.
    """

    bytes_per_weight: ClassVar[float] = 1 + 2 / TILE_GROUP
    levels: ClassVar[int] = 127

    @property
    def scales(self) -> Tensor:
        return self._numbers(0)

    @property
    def quants(self) -> Tensor:
        return self._slices(1)

    def _store(self, groups: Tensor, place: Place) -> None:
        scales = (groups.abs().amax(-1) / self.levels).half()  # [n, groups]
        quants = (groups / divisor(scales.float())[..., None]).round_().clamp_(-self.levels, self.levels) + 128
        _put(quants.to(torch.uint8), self.quants, place)
        _put(scales, self.scales, place)

    def unpacked(self) -> Unpacked:
        place = self.layout.places(0, self.shape[0])
        quants = self.quants[place].float() - 128
        return Unpacked(_by_group(quants).flatten(2), _by_group(self.scales[place].float()))


@dataclass(frozen=True, slots=True, eq=False)
class Int4Weight(GroupedWeight):
    """An Int4Weight is a matrix in 4 bits: weight = quant * scale + min.

    A cell holds scales and mins [2, 16] float16 each, quants [2, 4, 16, 4] uint8. A group is eight slices of four
    inputs. A byte holds an input of slice s < 4 in its low half and the same of slice s + 4 in its high half. Masked or
    shifted, 64 bytes are an operand of VNNI's dot products, as in Int8Weight.
    """

    bytes_per_weight: ClassVar[float] = 0.5 + 4 / TILE_GROUP
    levels: ClassVar[int] = 15

    @property
    def scales(self) -> Tensor:
        return self._numbers(0)

    @property
    def mins(self) -> Tensor:
        return self._numbers(1)

    @property
    def quants(self) -> Tensor:
        return self._slices(2)

    def _store(self, groups: Tensor, place: Place) -> None:
        scales, mins = fit(groups, self.levels)  # [n, groups]
        quants = rounded(groups, scales, mins, self.levels).to(torch.uint8)
        lower, upper = quants.unflatten(-1, (2, 4, 4)).unbind(2)  # [n, groups, slice, input]
        _put(lower | upper << 4, self.quants, place)
        _put(scales.half(), self.scales, place)
        _put(mins.half(), self.mins, place)

    def unpacked(self) -> Unpacked:
        place = self.layout.places(0, self.shape[0])
        pairs = _by_group(self.quants[place])  # [out, groups, slice, input]
        quants = torch.stack((pairs & 15, pairs >> 4), dim=2).float().flatten(2)
        return Unpacked(quants, *(_by_group(values[place].float()) for values in (self.scales, self.mins)))


def _put(values: Tensor, view: Tensor, place: Place) -> None:
    """Stores values [n, groups, ...] in a view of the cells."""
    view[place] = values.reshape(len(values), *view.shape[3:])


def _by_group(values: Tensor) -> Tensor:
    """Reshapes [n, blocks, cells, 2, ...] to [n, groups, ...]."""
    return values.flatten(1, 3)


def _round_up(size: int, step: int) -> int:
    return -(-size // step) * step
