"""Holds quantised matrices of checkpoints on a GPU as they are: their own codes, scales, zero points and minima."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.model.weights.kinds import SUPER, Kind
from octavo.model.weights.memory import Zeros
from octavo.model.weights.parts import Parts
from octavo.model.weights.row_major import ON_CPU, ON_GPU, ROW_GROUP, WORDS, packed, unpacked
from octavo.model.weights.stack import Format, Shape, StackedWeight

# Twice the values of E2M1 (https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf).
E2M1 = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
EIGHT_BIT_BIAS = 128  # what a code and a zero point of int8 are stored with in Parts
SCALES = {"none": None, "float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
E8M0_GROUP = ROW_GROUP // 4  # four scales of one byte are a word, beside the tile of inputs that they are for

Sizes = dict[str, tuple[tuple[int, ...], torch.dtype]]  # of each part of a weight


@dataclass(frozen=True, slots=True)
class RowMajorForm:
    """A RowMajorForm says how a GPU holds a matrix of a checkpoint: row by row, as `format` says.

        quants    int8, fp8    [out, in]
                  int4, fp4    [out, words] int32, in whole tiles of 128 inputs, as Int4RowMajor has them
        factors   [1, out] float32
        scales    of 16 bits   [groups, out, 2]: the scale, and beside it the minimum, or the zero as a whole number
                  of 32 bits   [groups, out] float32
                  e8m0         [tiles, out, 4] uint8
        offsets   [groups, out] float32: zeros or minima where they do not lie beside the scales

    A kernel loads words of 32 bits, since a copy into shared memory that runs ahead has no smaller unit.
    """

    format: Format
    ordered: bool = False  # whether each matrix has an `order` of its inputs, which whoever allocates it fills

    @property
    def bits(self) -> int:
        """Returns the bits of a code."""
        return 4 if self.format.kind in ("int4", "fp4") else 8

    @property
    def has_offsets(self) -> bool:
        """Says whether zeros or minima have a tensor of their own."""
        return self.format.offset != "none" and self.format.scale in ("none", "float32")

    @property
    def bytes_per_weight(self) -> float:
        """Returns the bytes that a weight takes, without padding and without what each output has once."""
        words = {"none": 0.0, "e8m0": 0.25}.get(self.format.scale, 1.0) + self.has_offsets
        return self.bits / 8 + (4 * words / self.format.group if self.format.group else 0)

    def groups(self, inputs: int) -> int:
        """Returns the groups of so many inputs; the last one may be shorter."""
        return -(-inputs // self.format.group) if self.format.group else 1

    def sizes(self, out: int, inputs: int) -> Sizes:
        """Returns the shape and type of each tensor of a matrix [out, in]."""
        tiles = -(-inputs // ROW_GROUP)
        groups = self.groups(tiles * ROW_GROUP if self.bits == 4 else inputs)
        found: Sizes = {"factors": ((1, out), torch.float32)}
        if self.bits == 4:
            found["quants"] = ((out, tiles * WORDS), torch.int32)
        else:
            found["quants"] = ((out, inputs), torch.int8 if self.format.kind == "int8" else torch.float8_e4m3fn)
        if self.format.scale == "e8m0":
            found["scales"] = ((tiles, out, 4), torch.uint8)
        elif (scale := SCALES[self.format.scale]) is not None:
            found["scales"] = ((groups, out) if scale == torch.float32 else (groups, out, 2), scale)
        if self.has_offsets:
            found["offsets"] = ((groups, out), torch.float32)
        if self.ordered:
            found["order"] = ((inputs,), torch.int32)
        return found

    def stack(self, count: int, shape: Shape, zeros: Zeros) -> tuple["KindRowMajor", ...]:
        """Allocates matrices of one shape as views of one tensor per part, which Stack.of puts together again."""
        parts = {name: zeros((count, *sizes), dtype) for name, (sizes, dtype) in self.sizes(*shape).items()}
        return tuple(
            KindRowMajor(self, shape, **{name: part[number] for name, part in parts.items()}) for number in range(count)
        )


def row_major_form(kind: Kind) -> RowMajorForm | None:
    """Returns how a GPU holds a kind exactly; None: its kernels have no form for it, so it must be dequantised.

    A scale of two levels is held as their product, which float32 holds exactly.
    """
    codes = _codes(kind)
    if codes is None or not (kind.group in (0, 32, 64) or kind.group % ROW_GROUP == 0):
        return None
    scale, offset = "float32" if kind.has_coarse else kind.scale.value, kind.offset.value
    if scale not in (*SCALES, "e8m0") or offset not in ("none", "zero", "minimum"):
        return None
    if scale == "e8m0" and (kind.group != E8M0_GROUP or offset != "none" or codes[0] == "int8"):
        return None
    if (offset == "minimum" and kind.group == 0) or (offset != "none" and codes[0] == "fp4"):
        return None
    name, base = codes
    return RowMajorForm(Format(name, kind.group, scale, offset, base))  # type: ignore[arg-type]


def fp8_form(group: int) -> RowMajorForm:
    """Returns how a GPU holds float8_e4m3fn with a scale in float32 for each group; 0: a factor for each output.

    The codes of its Parts are the bytes of the numbers. The group is a multiple of 128.
    """
    assert group % ROW_GROUP == 0
    return RowMajorForm(Format("fp8", group, "float32" if group else "none"))


def _codes(kind: Kind) -> tuple[str, int] | None:
    """Returns the kernels' name for the codes of a kind, and the value of code 0 where all are even steps."""
    if kind.values is None:
        return "int8", 0
    if kind.values == tuple(range(kind.values[0], kind.values[0] + 16)):
        return "int4", kind.values[0]
    return ("fp4", 0) if kind.values == E2M1 else None


@dataclass(frozen=True, slots=True, eq=False)
class KindRowMajor(StackedWeight):
    """A KindRowMajor is a matrix in a RowMajorForm. It holds zeros until rows are put in."""

    form: RowMajorForm
    shape: Shape
    quants: Tensor
    factors: Tensor
    scales: Tensor | None = None
    offsets: Tensor | None = None
    order: Tensor | None = None  # [in] int32, a permutation: stored input n multiplies x[order[n]]

    @property
    def format(self) -> Format:
        return self.form.format

    def tensors(self) -> dict[str, Tensor]:
        named = {"quants": self.quants, "scales": self.scales, "offsets": self.offsets}
        named |= {"factors": self.factors, "order": self.order}
        return {name: part for name, part in named.items() if part is not None}

    def put(self, parts: Parts, first: int) -> None:
        """Stores the parts of whole rows, of any device, from output `first` on.

        The zero of a channel of int8 must be a whole number from -128 to 127: kernels take it from each code.
        """
        device = self.quants.device
        at_once = max(1, (ON_CPU if device.type == "cpu" else ON_GPU) // self.shape[1])
        for start, some in _pieces(parts, at_once):
            rows = slice(first + start, first + start + len(some.codes))
            self.quants[rows] = self._stored_codes(some.codes.to(device))
            self.factors[0, rows] = some.factors.to(device)
            self._put_numbers(some, rows)

    def parts(self) -> Parts:
        """Returns all rows in plain order, bit by bit as they were put; two levels come back as one, in float32."""
        groups = self.form.groups(self.shape[1])
        scales, offsets, channel = self.scales, self.offsets, self.format.group == 0
        if scales is not None and self.format.scale == "e8m0":
            scales = scales.transpose(0, 1).flatten(1)[:, :groups]
        elif scales is not None:
            wide = self.format.scale == "float32"
            if not wide and self.format.offset != "none":
                offsets = self._beside(scales)[..., 1]
            scales = (scales if wide else scales[..., 0])[:groups].T
        if offsets is not None:
            offsets = offsets[:groups].T
            if self.format.offset == "zero" and not channel:
                offsets = (offsets.int() + self._bias).to(torch.uint8)
        return Parts(self._codes(), self.factors[0], scales, offsets)

    def dense(self) -> Tensor:
        stored = self._dense()
        return stored if self.order is None else torch.empty_like(stored).index_copy_(1, self.order.long(), stored)

    def _dense(self) -> Tensor:
        """Returns the weights as float32 [out, in], their inputs in the stored order."""
        parts, group = self.parts(), self.format.group
        scales = self.factors.T  # [out, 1]
        if parts.scales is not None and self.format.scale == "e8m0":
            scales = scales * torch.ldexp(torch.ones_like(parts.scales, dtype=torch.float32), parts.scales.int() - 127)
        elif parts.scales is not None:
            scales = scales * parts.scales.float()
        values = self._values(parts.codes)

        def of_inputs(numbers: Tensor) -> Tensor:
            return numbers.repeat_interleave(group, dim=1)[:, : self.shape[1]] if group else numbers

        if self.format.offset == "none" or parts.offsets is None:
            return values * of_inputs(scales)
        offsets = parts.offsets.float()
        if self.format.offset == "zero":
            return (values - of_inputs(offsets - (self._bias if group else 0))) * of_inputs(scales)
        return values * of_inputs(scales) + of_inputs(offsets)

    @property
    def _bias(self) -> int:
        return EIGHT_BIT_BIAS if self.format.kind == "int8" else 0

    def _stored_codes(self, codes: Tensor) -> Tensor:
        """Returns codes [n, in] uint8 as `quants` holds them."""
        match self.format.kind:
            case "int8":
                return (codes ^ EIGHT_BIT_BIAS).view(torch.int8)
            case "fp8":
                return codes.contiguous().view(torch.float8_e4m3fn)
        return packed(F.pad(codes, (0, -codes.shape[1] % ROW_GROUP)).unflatten(1, (-1, ROW_GROUP)).int())

    def _codes(self) -> Tensor:
        """Returns the codes [out, in] uint8."""
        match self.format.kind:
            case "int8":
                return self.quants.view(torch.uint8) ^ EIGHT_BIT_BIAS
            case "fp8":
                return self.quants.view(torch.uint8)
        return unpacked(self.quants).flatten(1)[:, : self.shape[1]].to(torch.uint8)

    def _values(self, codes: Tensor) -> Tensor:
        """Returns what codes [out, in] stand for, in float32."""
        match self.format.kind:
            case "int8" | "fp8":
                return self.quants.float()
            case "fp4":
                return torch.tensor(E2M1, dtype=torch.float32, device=codes.device)[codes.long()]
        return codes.float() + self.format.base

    def _put_numbers(self, parts: Parts, rows: slice) -> None:
        """Stores the numbers of the groups of some rows."""
        scales, offsets = _of_one_level(parts, self.format.group)
        if offsets is not None and self.format.offset == "zero" and self.format.group:
            offsets = offsets.int() - self._bias
        if self.scales is not None and scales is not None:
            if self.format.scale == "e8m0":
                padded = F.pad(scales, (0, -scales.shape[1] % 4)).unflatten(1, (-1, 4))  # [n, tiles, 4]
                self.scales[:, rows] = padded.transpose(0, 1).to(self.scales.device)
            elif self.format.scale == "float32":
                _put_groups(self.scales, scales, rows)
            else:
                _put_groups(self.scales[..., 0], scales, rows)
                if offsets is not None:
                    _put_groups(self._beside(self.scales)[..., 1], offsets, rows)
        if self.offsets is not None and offsets is not None:
            _put_groups(self.offsets, offsets, rows)

    def _beside(self, scales: Tensor) -> Tensor:
        """Returns scales [groups, out, 2] of 16 bits in the type of the offsets beside them."""
        return scales.view(torch.int16) if self.format.offset == "zero" else scales


def _pieces(parts: Parts, at_once: int) -> Iterator[tuple[int, Parts]]:
    """Yields some rows at a time: the first one's index, and their parts."""
    for start in range(0, len(parts.codes), at_once):
        numbers = (parts.scales, parts.offsets, parts.coarse)
        some = (None if part is None else part[start : start + at_once] for part in numbers)
        yield start, Parts(parts.codes[start : start + at_once], parts.factors[start : start + at_once], *some)


def _of_one_level(parts: Parts, group: int) -> tuple[Tensor | None, Tensor | None]:
    """Returns scales and offsets [n, groups]; where each has two levels, their products in float32, which are exact."""
    if parts.coarse is None or parts.scales is None:
        return parts.scales, parts.offsets
    coarse = parts.coarse.float().repeat_interleave(SUPER // group, dim=1)[:, : parts.scales.shape[1]]
    offsets = parts.offsets
    if offsets is not None and coarse.shape[2] == 2:
        offsets = offsets.float() * coarse[..., 1]
    return parts.scales.float() * coarse[..., 0], offsets


def _put_groups(held: Tensor, numbers: Tensor, rows: slice) -> None:
    """Stores numbers [n, groups] in held [groups or more, out]."""
    held[: numbers.shape[1], rows] = numbers.T.to(held.device, held.dtype)
