"""Holds the parts of a quantised matrix in the order of its rows: what a checkpoint gives and tiles store."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.model.weights.kinds import GROUP, SUPER, Kind, Offset, Scale


@dataclass(frozen=True, slots=True)
class Parts:
    """Parts are the codes of some rows and the numbers that belong to them, exactly as the kind holds them."""

    codes: Tensor  # [n, in] uint8
    factors: Tensor  # [n] float32
    scales: Tensor | None = None  # [n, groups] of the kind's type
    offsets: Tensor | None = None  # [n, groups] of the kind's type, or of a channel [n, 1] float32
    coarse: Tensor | None = None  # [n, in / 256, 1 or 2] float16: of the scales, of the minima

    def padded(self, kind: Kind, inputs: int) -> "Parts":
        """Returns the same with zeros up to a number of inputs, which is a multiple of the kind's unit."""

        def pad(part: Tensor | None, length: int) -> Tensor | None:
            return None if part is None else F.pad(part, (0, length - part.shape[1]))

        groups = inputs // kind.group if kind.group else 1
        coarse = None if self.coarse is None else pad(self.coarse.flatten(1), inputs // SUPER * self.coarse.shape[2])
        codes = pad(self.codes, inputs)
        assert codes is not None
        return Parts(
            codes,
            self.factors,
            pad(self.scales, groups),
            pad(self.offsets, groups),
            None if coarse is None or self.coarse is None else coarse.unflatten(1, (-1, self.coarse.shape[2])),
        )

    def unpacked(self, kind: Kind) -> "Unpacked":
        """Returns what the parts mean, for whole groups of 32 inputs."""
        scales = _scales(self, kind)  # [n, groups]
        every = (kind.group or self.codes.shape[1]) // GROUP
        minima = _minima(self, kind, scales)

        def of_32(numbers: Tensor) -> Tensor:
            return numbers.repeat_interleave(every, dim=1)

        quants = _values(self.codes, kind).unflatten(1, (-1, GROUP))
        return Unpacked(quants, of_32(scales), None if minima is None else of_32(minima))


@dataclass(frozen=True, slots=True)
class Unpacked:
    """An Unpacked is a quantised matrix in plain numbers: weight = quant * scale (+ minimum)."""

    quants: Tensor  # [n, groups of 32, 32] float32, whole numbers
    scales: Tensor  # [n, groups of 32] float32
    minima: Tensor | None  # [n, groups of 32] float32

    def dense(self) -> Tensor:
        """Returns [n, in] float32; the kernels never round the product and the sum apart."""
        values = self.quants * self.scales[..., None]
        return (values if self.minima is None else values + self.minima[..., None]).flatten(1)


def _values(codes: Tensor, kind: Kind) -> Tensor:
    if kind.values is None:
        return codes.float() - kind.bias
    return torch.tensor(kind.values, dtype=torch.float32)[codes.long()]


def _scales(parts: Parts, kind: Kind) -> Tensor:
    """Returns the scale of each group, [n, groups] float32: the one product is rounded once."""
    factors = parts.factors[:, None]
    if parts.scales is None:
        return factors
    if kind.scale is Scale.E8M0:
        return factors * torch.ldexp(torch.ones(parts.scales.shape), parts.scales.int() - 127)
    return factors * _coarse(parts, kind, 0, parts.scales.float())


def _minima(parts: Parts, kind: Kind, scales: Tensor) -> Tensor | None:
    """Returns what each group adds to scale * value, [n, groups] float32; None where the kind adds nothing."""
    match kind.offset:
        case Offset.NONE:
            return None
        case Offset.ODD:
            assert parts.scales is not None
            return scales * (parts.scales.int() & 1) * kind.shift
    assert parts.offsets is not None
    if kind.offset is Offset.ZERO:
        zeros = parts.offsets.float()
        return -scales * (zeros if kind.group == 0 else zeros - kind.bias)
    return _coarse(parts, kind, 1, parts.offsets.float())


def _coarse(parts: Parts, kind: Kind, n: int, fine: Tensor) -> Tensor:
    """Returns fine numbers times the n-th coarse one of their 256 inputs, which is exact."""
    if parts.coarse is None:
        return fine
    return fine * parts.coarse[..., n].float().repeat_interleave(SUPER // kind.group, dim=1)
