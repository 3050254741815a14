"""Takes the blocks of a GGUF tensor apart into Parts of a Kind that holds the same numbers, or into plain weights.

The layouts are those of ggml-common.h and ggml-quants.c (https://github.com/ggml-org/llama.cpp). A block is consecutive
weights of a row, with the numbers that they share:

    Q4_0    d | 16 bytes: the low halves are weights 0-15, the high halves 16-31          d * (q - 8)
    Q4_1    d, m | as Q4_0                                                                d * q + m
    Q5_0    d | 32 highest bits | as Q4_0                                                 d * (q - 16)
    Q5_1    d, m | 32 highest bits | as Q4_0                                              d * q + m
    Q8_0    d | 32 bytes                                                                  d * q
    Q4_K    d, dmin | 8 scales and 8 minima of 6 bits | 4 times 64 weights of 4 bits      d * s * q - dmin * m
    Q5_K    as Q4_K, with the highest bits of 256 weights before the others               d * s * q - dmin * m
    Q6_K    low 4 bits | high 2 bits | 16 scales of 8 bits | d                            d * s * (q - 32)

d, m and dmin are in float16. Q6_K shares a scale among 16 weights, which no Kind does: it becomes plain weights.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from octavo.model.gguf.types import TensorType
from octavo.model.weights.kinds import EVEN4, GROUP, INT8_FINE, LEAST, Kind, Offset, Scale
from octavo.model.weights.parts import Parts
from octavo.model.weights.rounding import quantise

BLOCKS = ".blocks"  # ends the name under which a module's quantised weight is read
AT_ONCE = 1 << 20  # weights that are taken apart at a time, so that a large matrix takes little memory besides

PLAIN = {TensorType.F32: torch.float32, TensorType.F16: torch.float16, TensorType.BF16: torch.bfloat16}

# These hold what the types do, number by number.
CENTRED4 = Kind(tuple(range(-8, 8)), GROUP, Scale.FLOAT16)
EVEN8 = Kind(None, GROUP, Scale.FLOAT16, Offset.MINIMUM)
SUPER4 = Kind(tuple(range(16)), GROUP, Scale.INT8_OF_256, Offset.MINIMUM)
SUPER8 = Kind(None, GROUP, Scale.INT8_OF_256, Offset.MINIMUM)
WIDE8 = Kind(None, GROUP, Scale.FLOAT32, Offset.MINIMUM)  # any of these, and what Octavo rounds itself
KINDS = {
    TensorType.Q4_0: CENTRED4,
    TensorType.Q4_1: EVEN4,
    TensorType.Q5_0: INT8_FINE,
    TensorType.Q5_1: EVEN8,
    TensorType.Q8_0: INT8_FINE,
    TensorType.Q4_K: SUPER4,
    TensorType.Q5_K: SUPER8,
}
# Where a block has its float16 numbers, in bytes.
_ONE, _TWO = (0,), (0, 2)
FLOATS = {
    TensorType.Q4_0: _ONE,
    TensorType.Q4_1: _TWO,
    TensorType.Q5_0: _ONE,
    TensorType.Q5_1: _TWO,
    TensorType.Q8_0: _ONE,
    TensorType.Q4_K: _TWO,
    TensorType.Q5_K: _TWO,
    TensorType.Q6_K: (208,),
}


@dataclass(frozen=True, slots=True, eq=False)
class Blocks:
    """Blocks are the rows of a quantised matrix as they stand in the file: nobody has rounded them again."""

    type: TensorType
    data: Tensor  # [out, blocks, bytes] uint8

    @property
    def shape(self) -> tuple[int, int]:
        return self.data.shape[0], self.data.shape[1] * self.type.weights

    @property
    def kind(self) -> Kind:
        """Returns the kind in which they are held alone; only that of Q6_K loses something."""
        return KINDS.get(self.type, INT8_FINE)

    def dense(self) -> Tensor:
        """Returns the weights as float32 [out, in]."""
        out = torch.empty(self.shape)
        at_once = max(1, AT_ONCE // self.shape[1])
        for rows, data in zip(out.split(at_once), self.data.split(at_once), strict=True):
            rows.copy_(dense_of(data, self.type))
        return out

    def rows(self, chosen: slice | Tensor) -> Self:
        """Returns the same with some rows, in that order."""
        return replace(self, data=self.data[chosen])

    def is_finite(self) -> bool:
        """Says whether no weight is infinite or NaN."""
        return all(bool(_float16(self.data, at).isfinite().all()) for at in FLOATS[self.type])

    def parts(self, kind: Kind) -> Parts:
        """Returns what a kind holds of them: `kind` is theirs, or one that `joined` returns for it."""
        return converted(parts_of(self.data, self.type) if self.type in KINDS else self._rounded(), self.kind, kind)

    def _rounded(self) -> Parts:
        """Returns parts of INT8_FINE, made of some rows at a time."""
        at_once = max(1, AT_ONCE // self.shape[1])
        made = [quantise(dense_of(data, self.type), INT8_FINE) for data in self.data.split(at_once)]
        numbers = [each.scales for each in made if each.scales is not None]
        return Parts(
            torch.cat([each.codes for each in made]), torch.cat([each.factors for each in made]), torch.cat(numbers)
        )


def joined(kinds: Iterable[Kind]) -> Kind:
    """Returns a kind that holds the numbers of all these kinds of this file, for matrices that become one."""
    different = set(kinds)
    if len(different) == 1:
        return different.pop()
    if different == {SUPER4, SUPER8}:
        return SUPER8
    if all(kind.scale is Scale.FLOAT16 for kind in different):
        return EVEN8 if any(kind.offset is Offset.MINIMUM for kind in different) else INT8_FINE
    return WIDE8


def converted(parts: Parts, kind: Kind, wanted: Kind) -> Parts:
    """Returns parts of one kind as parts of another, which is `joined` from it; no weight changes."""
    if kind == wanted:
        return parts
    assert parts.scales is not None
    codes = parts.codes if kind.values is None else torch.tensor(kind.values)[parts.codes.long()] - LEAST
    scales, minima = parts.scales, parts.offsets
    if minima is None and wanted.offset is Offset.MINIMUM:
        minima = torch.zeros(scales.shape)
    if wanted.has_coarse:
        return Parts(codes.to(torch.uint8), parts.factors, scales, minima, parts.coarse)
    if parts.coarse is not None:
        of_groups = parts.coarse.float().repeat_interleave(scales.shape[1] // parts.coarse.shape[1], dim=1)
        scales = scales * of_groups[..., 0]
        minima = None if minima is None else minima * of_groups[..., 1]
    minima = None if minima is None else minima.to(wanted.offset_type)
    return Parts(codes.to(torch.uint8), parts.factors, scales.to(wanted.scale_type), minima)


@dataclass(frozen=True, slots=True)
class _Numbers:
    """_Numbers are the codes of blocks, as a file counts them, with what they are multiplied by."""

    codes: Tensor  # [n, in] uint8, from 0 on
    scales: Tensor  # [n, groups]
    minima: Tensor | None = None  # [n, groups]
    coarse: Tensor | None = None  # [n, blocks, 2] float16


def parts_of(blocks: Tensor, type: TensorType) -> Parts:
    """Returns the numbers of blocks [n, blocks, bytes], as KINDS[type] holds them; none is rounded."""
    numbers = _SPLIT[type](blocks)
    kind = KINDS[type]
    codes = numbers.codes + (_SHIFT[type] - LEAST) if kind.bits == 8 else numbers.codes
    factors = torch.ones(len(codes), dtype=torch.float32)
    return Parts(codes, factors, numbers.scales, numbers.minima, numbers.coarse)


def dense_of(blocks: Tensor, type: TensorType) -> Tensor:
    """Returns the weights of blocks [n, blocks, bytes], as float32 [n, in]."""
    if type is TensorType.Q6_K:
        return _q6_k(blocks)
    return parts_of(blocks, type).unpacked(KINDS[type]).dense()


def _halves(blocks: Tensor, first: int) -> Tensor:
    """Returns the 32 codes of 4 bits that begin at a byte of each block, [n, blocks, 32] uint8."""
    data = blocks[..., first : first + 16]
    return torch.cat((data & 15, data >> 4), dim=-1)


def _float16(blocks: Tensor, first: int) -> Tensor:
    """Returns the number at a byte of each block, [n, blocks] float16."""
    return blocks[..., first : first + 2].contiguous().view(torch.float16).squeeze(-1)


def _fifth_bits(blocks: Tensor, first: int) -> Tensor:
    """Returns 16 for each of 32 weights whose highest bit is set, and else 0: [n, blocks, 32] uint8."""
    bits = torch.arange(8, dtype=torch.uint8)
    data = blocks[..., first : first + 4, None] >> bits & 1  # [n, blocks, 4, 8]
    return data.flatten(-2) << 4


def _q4_0(blocks: Tensor) -> _Numbers:
    return _Numbers(_halves(blocks, 2).flatten(1), _float16(blocks, 0))


def _q4_1(blocks: Tensor) -> _Numbers:
    return _Numbers(_halves(blocks, 4).flatten(1), _float16(blocks, 0), _float16(blocks, 2))


def _q5_0(blocks: Tensor) -> _Numbers:
    codes = _halves(blocks, 6) | _fifth_bits(blocks, 2)
    return _Numbers(codes.flatten(1), _float16(blocks, 0))


def _q5_1(blocks: Tensor) -> _Numbers:
    codes = _halves(blocks, 8) | _fifth_bits(blocks, 4)
    return _Numbers(codes.flatten(1), _float16(blocks, 0), _float16(blocks, 2))


def _q8_0(blocks: Tensor) -> _Numbers:
    return _Numbers(blocks[..., 2:].flatten(1), _float16(blocks, 0))


def _q4_k(blocks: Tensor) -> _Numbers:
    return _two_level(blocks, _quarters(blocks, 16))


def _q5_k(blocks: Tensor) -> _Numbers:
    high = blocks[..., 16:48]  # Bit n of a byte belongs to the n-th 32 weights.
    bits = torch.stack([high >> n & 1 for n in range(8)], dim=-2)  # [n, blocks, 8, 32]
    return _two_level(blocks, _quarters(blocks, 48) | bits << 4)


def _quarters(blocks: Tensor, first: int) -> Tensor:
    """Returns codes of 4 bits, [n, blocks, 8, 32]: of 64 weights, the low halves of 32 bytes come first."""
    data = blocks[..., first : first + 128].unflatten(-1, (4, 32))
    return torch.stack((data & 15, data >> 4), dim=-2).flatten(2, 3)


def _two_level(blocks: Tensor, codes: Tensor) -> _Numbers:
    """Joins codes with the scales and minima of 6 bits that stand in the 12 bytes after d and dmin."""
    low, middle, high = blocks[..., 4:8], blocks[..., 8:12], blocks[..., 12:16]
    scales = torch.cat((low & 63, high & 15 | low >> 6 << 4), dim=-1)
    minima = torch.cat((middle & 63, high >> 4 | middle >> 6 << 4), dim=-1)
    coarse = torch.stack((_float16(blocks, 0), -_float16(blocks, 2)), dim=-1)
    return _Numbers(codes.flatten(1), scales.view(torch.int8).flatten(1), minima.flatten(1), coarse)


def _q6_k(blocks: Tensor) -> Tensor:
    """Returns the weights; each 128 have 64 bytes with their low 4 bits, and 32 with their high 2 bits."""
    low = blocks[..., :128].unflatten(-1, (2, 1, 64))
    low = torch.cat((low & 15, low >> 4), dim=-2).flatten(-2)  # [n, blocks, 2, 128]
    high = blocks[..., 128:192].unflatten(-1, (2, 32))
    high = torch.cat([high >> 2 * n & 3 for n in range(4)], dim=-1)  # [n, blocks, 2, 128]
    quants = (low | high << 4).float() - 32
    scales = blocks[..., 192:208].contiguous().view(torch.int8) * _float16(blocks, 208).float()[..., None]
    return (quants.unflatten(-1, (8, 16)) * scales.unflatten(-1, (2, 8, 1))).flatten(1)


_SPLIT: dict[TensorType, Callable[[Tensor], _Numbers]] = {
    TensorType.Q4_0: _q4_0,
    TensorType.Q4_1: _q4_1,
    TensorType.Q5_0: _q5_0,
    TensorType.Q5_1: _q5_1,
    TensorType.Q8_0: _q8_0,
    TensorType.Q4_K: _q4_k,
    TensorType.Q5_K: _q5_k,
}
# What a code of 0 means, where codes become bytes; Q8_0's are signed, and a byte's first bit tells their sign.
_SHIFT = {TensorType.Q5_0: -16, TensorType.Q5_1: 0, TensorType.Q8_0: 0, TensorType.Q5_K: 0}
