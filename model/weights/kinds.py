"""Describes kinds of quantised weights of a CPU as data: what a code means, and which numbers turn it into a weight.

    weight = scale * (value(code) - zero) + minimum

An output's factor multiplies its scales. A group of inputs shares a scale, and a zero or a minimum where the kind has
one. The kernels and the plain reference know these few words, and a new format is a new combination of them.
"""

from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import cached_property
from math import lcm
from typing import Any

import torch

GROUP = 32  # inputs whose products are summed as whole numbers: every group of weights is a multiple of it
CELL = 2 * GROUP  # inputs; a matrix is padded to whole cells
# Most inputs of a block, and so of a group: its activations and a tile's weights fit into a CPU's first cache.
BLOCK = 1024
SUPER = 256  # inputs that share the coarse numbers of a two-level scale
LEAST, MOST = -128, 127  # values that a code may have


class Scale(StrEnum):
    """A Scale says what each group's scale is held as; the output's factor multiplies it."""

    NONE = "none"  # the factor alone: the group is a channel
    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    # a power of two (https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf)
    E8M0 = "e8m0"
    INT8 = "int8"
    INT8_OF_256 = "int8-of-256"  # an int8 number times a float16 number for each 256 inputs


class Offset(StrEnum):
    """An Offset says what moves a group's values."""

    NONE = "none"
    ODD = "odd"  # the kind's shift is added where a scale in int8 is odd: its lowest bit chooses between two tables
    ZERO = "zero"  # a zero point for each group, one byte; for a channel in float32
    MINIMUM = "minimum"  # in the scale's own type; for a channel in float32


SCALE_TYPES = {
    Scale.FLOAT32: torch.float32,
    Scale.FLOAT16: torch.float16,
    Scale.BFLOAT16: torch.bfloat16,
    Scale.E8M0: torch.uint8,
    Scale.INT8: torch.int8,
    Scale.INT8_OF_256: torch.int8,
}


@dataclass(frozen=True)
class Kind:
    """A Kind is how one matrix is held. Two matrices of a model may have different kinds."""

    values: tuple[int, ...] | None  # of the 16 codes of 4 bits; None: a code is a byte and means itself less 128
    group: int  # inputs that share a scale: a multiple of 32; 0: all of an output's
    scale: Scale
    offset: Offset = Offset.NONE
    shift: int = 0  # what an odd scale adds to the values

    def __post_init__(self) -> None:
        """Raises ValueError for a combination that means nothing."""
        if self.values is not None and (len(self.values) != 16 or not all(LEAST <= v <= MOST for v in self.values)):
            raise ValueError("a table has 16 values from -128 to 127")
        if self.group % GROUP or (self.group == 0) != (self.scale is Scale.NONE):
            raise ValueError("a group is a multiple of 32 inputs, or a channel without scales of its own")
        if self.unit > BLOCK:
            raise ValueError("a group has at most 1024 inputs")
        if self.scale is Scale.INT8_OF_256 and SUPER % self.group:
            raise ValueError("256 inputs are whole groups of a two-level scale")
        if self.offset is Offset.ODD and self.scale is not Scale.INT8:
            raise ValueError("only a scale in int8 is odd or even")
        if self.offset is Offset.MINIMUM and self.scale in (Scale.E8M0, Scale.INT8):
            raise ValueError(f"a minimum has no form beside a scale in {self.scale}")

    @property
    def bits(self) -> int:
        """Returns the bits of a code."""
        return 8 if self.values is None else 4

    @property
    def bias(self) -> int:
        """Returns what a code or a zero point of 8 bits is stored with, so that it is a byte."""
        return -LEAST if self.values is None else 0

    @property
    def unit(self) -> int:
        """Returns the inputs that a block is a multiple of: whole cells, groups and coarse numbers."""
        return lcm(CELL, self.group or CELL, SUPER if self.has_coarse else CELL)

    @property
    def scale_type(self) -> torch.dtype | None:
        """Returns the type of each group's scale; None: there are none."""
        return SCALE_TYPES.get(self.scale)

    @property
    def offset_type(self) -> torch.dtype | None:
        """Returns the type of each group's offset; None: there are none, or the header has them."""
        if self.group == 0 or self.offset in (Offset.NONE, Offset.ODD):
            return None
        return torch.uint8 if self.offset is Offset.ZERO or self.has_coarse else self.scale_type

    @property
    def has_coarse(self) -> bool:
        """Says whether each 256 inputs share further numbers."""
        return self.scale is Scale.INT8_OF_256

    @property
    def has_channel_offset(self) -> bool:
        """Says whether the header has an offset for each output."""
        return self.group == 0 and self.offset in (Offset.ZERO, Offset.MINIMUM)

    @cached_property
    def bytes_per_weight(self) -> float:
        """Returns the bytes that a weight takes, without padding and without the header of each panel."""
        numbers = sum(each.itemsize for each in (self.scale_type, self.offset_type) if each is not None)
        coarse = 2 * (2 if self.offset is Offset.MINIMUM else 1) if self.has_coarse else 0
        return self.bits / 8 + (numbers / self.group if self.group else 0) + coarse / SUPER

    def to_json(self) -> dict[str, Any]:
        """Returns what `from_json` makes the same kind of."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "Kind":
        """Returns the kind. Raises ValueError, TypeError or KeyError for anything but what `to_json` returns."""
        values = None if fields["values"] is None else tuple(fields["values"])
        scale, offset = Scale(fields["scale"]), Offset(fields["offset"])
        return cls(values, fields["group"], scale, offset, fields["shift"])


# Measured on weights of every size, in groups of 32: a scale in one byte costs INT8 a hundredth of its error, and takes
# half of float16's memory.
INT8 = Kind(None, GROUP, Scale.INT8)

# Rows of attention and of the head have groups that are hundreds of times smaller than others, and that meet the
# largest activations. A scale in one byte would be too coarse for these: the default model would lose twice as much.
INT8_FINE = Kind(None, GROUP, Scale.FLOAT16)

# The values lie closer together in the middle, where most weights are, as those of llama.cpp's IQ4_NL do. With a shift
# for each group, the error on normal weights is within a hundredth of EVEN4's, at 85% of the memory. It is larger where
# a few weights of a row are many times as large as the rest, because the row's scales are multiples of one factor. The
# values span 63, so that four products with int8 numbers fit an int16 sum; a search by single steps found them.
INT4 = Kind((-34, -26, -21, -17, -13, -9, -6, -3, 0, 3, 6, 10, 14, 18, 23, 29), GROUP, Scale.INT8, Offset.ODD, shift=1)

# Weights that were once rounded to 16 even steps from the lowest to the highest of each 32, as llama.cpp's Q4_1 does,
# keep their values in the same steps.
EVEN4 = Kind(tuple(range(16)), GROUP, Scale.FLOAT16, Offset.MINIMUM)
