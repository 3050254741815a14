"""Holds quantised matrices of a CPU in tiles: how they lie in memory, how they are filled and read again."""

from dataclasses import dataclass, field
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.model.weights.kinds import BLOCK, GROUP, SUPER, Kind, Offset
from octavo.model.weights.memory import Zeros, zeros_on
from octavo.model.weights.parts import Parts, Unpacked
from octavo.model.weights.rounding import quantise

QUANTISED = 1 << 14  # elements quantised at a time: the temporaries stay in the CPU's cache

TILE = 16  # outputs that are computed together: one register of 32-bit sums
TILES = 4  # tiles in a panel
PANEL = TILES * TILE  # outputs
LINE = 64  # bytes of a cache line; all codes begin at a multiple of it

Place = tuple[Tensor, Tensor, Tensor]  # panel, tile and output within the tile of n rows, [n] each


@dataclass(frozen=True, slots=True)
class Region:
    """A Region is where numbers of one type lie in a block of a tile: [count, 16 outputs]."""

    start: int  # bytes
    count: int
    dtype: torch.dtype

    @property
    def end(self) -> int:
        return self.start + self.count * TILE * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class TileLayout:
    """A TileLayout places the rows of a quantised matrix in panels of 4 tiles of 16 outputs, read from end to end.

    A tile is cut along the inputs into blocks of up to 1024. So the activations that a block's first tile is multiplied
    with are still at hand for the other three. The numbers of a block come before its codes.

        panel    factors (offsets of channels) | block 0                      | block 1          | ...
        block    of tile 0 | of tile 1 | of tile 2 | of tile 3
        of tile  coarse scales, scales, coarse minima, offsets, padding to 64 bytes | codes
        codes    8 bits: 32 inputs are 8 slices of 4 inputs of 16 outputs
                 4 bits: 32 inputs are 4 slices; a byte's low half is of slice s, its high half of slice s + 4

    Rows and inputs are padded with zeros to whole panels and to whole units of the kind. If two halves are multiplied
    elementwise (gate above up), their tiles alternate, so that a panel has both factors of 32 results:

        plain          rows  0-15 | 16-31 | 32-47 | ...
        interleaved    gate  0-15 | up 0-15 | gate 16-31 | up 16-31 | ...      each half is padded for itself
    """

    kind: Kind
    shape: tuple[int, int]  # (out, in)
    interleaved: bool = False  # the upper half of the rows with the lower half

    @property
    def panels(self) -> int:
        halves = 2 if self.interleaved else 1
        return halves * _round_up(self.shape[0] // halves, PANEL) // PANEL

    @property
    def inputs(self) -> int:
        """Returns the inputs with their padding."""
        return _round_up(self.shape[1], self.kind.unit)

    @property
    def block(self) -> int:
        """Returns the inputs of a block; all blocks have the same."""
        units = self.inputs // self.kind.unit
        most = max(1, BLOCK // self.kind.unit)
        return self.kind.unit * next(count for count in range(most, 0, -1) if units % count == 0)

    @property
    def blocks(self) -> int:
        return self.inputs // self.block

    @property
    def header(self) -> int:
        """Returns the bytes before a panel's blocks: a float32 factor for each output, and perhaps an offset."""
        return (2 if self.kind.has_channel_offset else 1) * PANEL * torch.float32.itemsize

    def regions(self) -> dict[str, Region]:
        """Returns where a block of a tile has its numbers, in their order."""
        kind, found, at = self.kind, dict[str, Region](), 0
        groups, supers = (self.block // kind.group if kind.group else 0), self.block // SUPER
        minima = kind.has_coarse and kind.offset is Offset.MINIMUM
        wanted = (
            ("coarse scales", supers if kind.has_coarse else 0, torch.float16),
            ("scales", groups, kind.scale_type),
            ("coarse minima", supers if minima else 0, torch.float16),
            ("offsets", groups, kind.offset_type),
        )
        for name, count, dtype in wanted:
            if count and dtype is not None:
                found[name] = Region(at, count, dtype)
                at = found[name].end
        return found

    @property
    def numbers(self) -> int:
        """Returns the bytes of the numbers of a block of a tile, with their padding."""
        return _round_up(max((region.end for region in self.regions().values()), default=0), LINE)

    @property
    def tile_bytes(self) -> int:
        """Returns the bytes of a block of a tile."""
        return self.numbers + self.block * TILE * self.kind.bits // 8

    @property
    def panel_bytes(self) -> int:
        return self.header + self.blocks * TILES * self.tile_bytes

    @property
    def size(self) -> tuple[int, int]:
        """Returns the sizes [panels, bytes] of the memory."""
        return self.panels, self.panel_bytes

    def places(self, first: int, count: int) -> Place:
        """Returns the places of `count` rows from `first` on."""
        rows = torch.arange(first, first + count)
        tiles = rows // TILE
        if self.interleaved:
            half = self.shape[0] // 2
            rows, lower = rows % half, rows // half
            tiles = rows // TILE * 2 + lower
        return tiles // TILES, tiles % TILES, rows % TILE


@dataclass(frozen=True, slots=True, eq=False)
class TiledWeight:
    """A TiledWeight is a matrix of some kind in tiles. It is 0 until it is filled."""

    layout: TileLayout
    memory: Tensor  # [panels, bytes] uint8
    # The kernels make 1 or 2 int8 numbers of each activation; the second is what rounding left of the first. With one,
    # the neighbours of a much larger activation would round to nothing.
    terms: int = field(default=1, kw_only=True)
    # Stored input n multiplies x[:, order[n]], a permutation; None: x[:, n]. Where a checkpoint chose its groups by the
    # size of the activations, the inputs of a group lie apart, and are stored side by side.
    order: Tensor | None = field(default=None, kw_only=True)  # [in] int32

    @classmethod
    def pack(cls, kind: Kind, dense: Tensor, interleaved: bool = False, terms: int = 1) -> Self:
        """Quantises dense [out, in] of any floating type, whose values are finite."""
        layout = TileLayout(kind, (dense.shape[0], dense.shape[1]), interleaved)
        weight = cls.empty(layout, zeros_on(dense.device), terms)
        weight.fill(dense, 0)
        return weight

    @classmethod
    def empty(cls, layout: TileLayout, zeros: Zeros, terms: int = 1, order: Tensor | None = None) -> Self:
        """Allocates a matrix of zeros, since all factors are 0."""
        return cls(layout, zeros(layout.size, torch.uint8), terms=terms, order=order)

    @property
    def kind(self) -> Kind:
        return self.layout.kind

    @property
    def shape(self) -> tuple[int, int]:
        return self.layout.shape

    @property
    def nbytes(self) -> int:
        """Returns the bytes it takes."""
        return self.memory.nbytes + (0 if self.order is None else self.order.nbytes)

    def fill(self, rows: Tensor, first: int) -> None:
        """Quantises rows [n, in] of any floating type into the outputs from `first` on, in a slow and obvious way."""
        at_once = max(1, QUANTISED // rows.shape[1])
        for start in range(0, rows.shape[0], at_once):
            part = rows[start : start + at_once].to(self.memory.device, torch.float32)
            padded = F.pad(part, (0, self.layout.inputs - part.shape[1]))
            self.put(quantise(padded, self.kind), first + start)

    def put(self, parts: Parts, first: int) -> None:
        """Stores whole rows, their inputs in the stored order, into the outputs from `first` on; nothing is rounded."""
        parts = parts.padded(self.kind, self.layout.inputs)
        place = self.layout.places(first, len(parts.codes))
        _put(parts.factors, self._of_channel(0), place)
        if self.kind.has_channel_offset:
            _put(parts.offsets, self._of_channel(1), place)
        for name, values in _numbers(parts).items():
            if name in self.layout.regions():
                _put(values, self._of_region(name), place)
        # Four codes are moved as one word: no bit of one reaches the next.
        words = parts.codes.contiguous().view(torch.int32)  # [n, in / 4]
        slices = words.unflatten(1, (-1, 2, GROUP // 8))  # [n, groups of 32, half, slice]
        if self.kind.bits == 4:
            slices = slices[:, :, 0] | slices[:, :, 1] << 4
        _put(slices, self._codes().view(torch.int32), place)

    def parts(self) -> Parts:
        """Returns what was stored: the rows in their order, the inputs in the stored order, with their padding."""
        place = self.layout.places(0, self.shape[0])
        found = {name: self._of_region(name)[place].flatten(1) for name in self.layout.regions()}
        slices = self._codes()[place].flatten(1, 2)  # [out, groups of 32, slices, 4]
        if self.kind.bits == 4:
            slices = torch.cat((slices & 15, slices >> 4), dim=2)
        coarse = [found[name] for name in ("coarse scales", "coarse minima") if name in found]
        return Parts(
            slices.flatten(1),
            self._of_channel(0)[place],
            found.get("scales"),
            self._of_channel(1)[place][:, None] if self.kind.has_channel_offset else found.get("offsets"),
            torch.stack(coarse, dim=-1) if coarse else None,
        )

    def unpacked(self) -> Unpacked:
        """Returns what is held: the rows in their order, the inputs in the stored order, with their padding."""
        return self.parts().unpacked(self.kind)

    def dense(self) -> Tensor:
        """Returns the rounded weights as float32 [out, in], in the order of x."""
        stored = self.unpacked().dense()[:, : self.shape[1]]
        return stored if self.order is None else torch.empty_like(stored).index_copy_(1, self.order.long(), stored)

    def gathered(self, x: Tensor) -> Tensor:
        """Returns x [T, in] in the stored order."""
        return x if self.order is None else x[:, self.order]

    def _of_channel(self, n: int) -> Tensor:
        """Returns the n-th number of each output, as a view [panels, tiles, 16] that is indexed with a Place."""
        numbers = self.memory[:, : self.layout.header].view(torch.float32)
        return numbers[:, n * PANEL : (n + 1) * PANEL].unflatten(1, (TILES, TILE))

    def _blocks(self) -> Tensor:
        """Returns a view [panels, blocks, tiles, bytes]."""
        return self.memory[:, self.layout.header :].unflatten(1, (self.layout.blocks, TILES, -1))

    def _of_region(self, name: str) -> Tensor:
        """Returns one number of each group, as a view [panels, tiles, 16, blocks, groups of a block]."""
        region = self.layout.regions()[name]
        numbers = self._blocks()[..., region.start : region.end].view(region.dtype).unflatten(-1, (-1, TILE))
        return numbers.permute(0, 2, 4, 1, 3)

    def _codes(self) -> Tensor:
        """Returns the codes as a view [panels, tiles, 16, blocks, groups of 32, slices, 4]."""
        slices = self._blocks()[..., self.layout.numbers :].unflatten(-1, (-1, self.kind.bits, TILE, 4))
        return slices.permute(0, 2, 5, 1, 3, 4, 6)


def _numbers(parts: Parts) -> dict[str, Tensor]:
    """Returns the numbers of the groups by their names in a block."""
    named = {"scales": parts.scales, "offsets": parts.offsets}
    if parts.coarse is not None:
        named |= dict(zip(("coarse scales", "coarse minima"), parts.coarse.unbind(-1), strict=False))
    return {name: values for name, values in named.items() if values is not None}


def _put(values: Tensor | None, view: Tensor, place: Place) -> None:
    """Stores values [n, ...] in a view that a Place indexes."""
    assert values is not None
    view[place] = values.reshape(len(values), *view.shape[3:])


def _round_up(size: int, step: int) -> int:
    return -(-size // step) * step
