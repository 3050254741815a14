"""Holds matrices as quantised checkpoints have them: their integers and scales, which nobody has rounded again.

The reference of each is `dense()`, in plain operations.
"""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from octavo.model.gguf.blocks import Blocks

Rows = slice | Tensor  # chosen rows: a slice, or their numbers [n] int64


@dataclass(frozen=True, slots=True, eq=False)
class Affine:
    """An Affine has whole steps: weight = (code - zero) * scale.

    The code of a row's stored input n multiplies the input order[n], and shares its scale with the rest of its group.
    """

    codes: Tensor  # [out, in] uint8, from 0 to 2**bits - 1
    bits: int  # 4 or 8
    group: int  # stored inputs that share a scale; 0: all of them
    scales: Tensor  # [out, groups] float16, bfloat16 or float32
    zeros: Tensor | None = None  # [out, groups] uint8; None: 2**(bits - 1) everywhere
    order: Tensor | None = None  # [in] int32; None: as they come

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape[0], self.codes.shape[1]

    @property
    def middle(self) -> int:
        """Returns the zero of a symmetric matrix."""
        return 1 << (self.bits - 1)

    def rows(self, chosen: Rows) -> Self:
        """Returns the same with some rows, in that order."""
        zeros = None if self.zeros is None else self.zeros[chosen]
        return replace(self, codes=self.codes[chosen], scales=self.scales[chosen], zeros=zeros)

    def dense(self) -> Tensor:
        """Returns the weights as float32 [out, in], in the order of the inputs."""
        zeros = self.middle if self.zeros is None else spread(self.zeros, self.group, self.shape[1]).float()
        stored = (self.codes.float() - zeros) * spread(self.scales, self.group, self.shape[1]).float()
        if self.order is None:
            return stored
        dense = torch.empty_like(stored)
        dense[:, self.order.long()] = stored
        return dense


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """A Table has 16 values: weight = values[code] * factor * 2**(scale - 127)."""

    codes: Tensor  # [out, in] uint8, from 0 to 15
    group: int  # inputs that share a scale
    scales: Tensor  # [out, groups] uint8, from 0 to 254: exponents of two
    values: tuple[int, ...]
    factor: float

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape[0], self.codes.shape[1]

    def rows(self, chosen: Rows) -> Self:
        """Returns the same with some rows, in that order."""
        return replace(self, codes=self.codes[chosen], scales=self.scales[chosen])

    def dense(self) -> Tensor:
        """Returns the weights as float32 [out, in]."""
        values = torch.tensor(self.values, dtype=torch.float32)[self.codes.long()]
        exponents = spread(self.scales, self.group, self.shape[1]).int() - 127
        return torch.ldexp(values * self.factor, exponents)


@dataclass(frozen=True, slots=True, eq=False)
class Floats:
    """A Floats has weights in float8_e4m3fn, each multiplied by the scale of its group."""

    values: Tensor  # [out, in] float8_e4m3fn
    group: int  # inputs that share a scale; 0: all of them
    scales: Tensor  # [out, groups] float32

    @property
    def shape(self) -> tuple[int, int]:
        return self.values.shape[0], self.values.shape[1]

    def rows(self, chosen: Rows) -> Self:
        """Returns the same with some rows, in that order."""
        return replace(self, values=_bytes_of(self.values)[chosen].view(self.values.dtype), scales=self.scales[chosen])

    def dense(self) -> Tensor:
        """Returns the weights as float32 [out, in]."""
        return self.values.float() * spread(self.scales, self.group, self.shape[1])


@dataclass(frozen=True, slots=True, eq=False)
class Dense:
    """A Dense has been decoded, because no kind holds its format."""

    values: Tensor  # [out, in] float32

    @property
    def shape(self) -> tuple[int, int]:
        return self.values.shape[0], self.values.shape[1]

    def rows(self, chosen: Rows) -> Self:
        """Returns the same with some rows, in that order."""
        return replace(self, values=self.values[chosen])

    def dense(self) -> Tensor:
        """Returns the weights as float32 [out, in]."""
        return self.values


Stored = Affine | Table | Floats | Dense | Blocks


def spread(numbers: Tensor, group: int, inputs: int) -> Tensor:
    """Returns the number of each group [out, groups] for each of its inputs, [out, in] or [out, 1]."""
    return numbers.repeat_interleave(min(group, inputs), dim=1)[:, :inputs] if group else numbers


def _bytes_of(values: Tensor) -> Tensor:
    """Returns a view as bytes: torch indexes few things in float8."""
    return values.view(torch.uint8)
