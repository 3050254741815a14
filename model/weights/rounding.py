"""Quantises rows to the kinds that Octavo makes itself: INT8, INT4 and EVEN4, in a slow and obvious way.

The C kernels give the same bits (quantise.h), so the order of each sum is part of what is said here.
"""

import torch
from torch import Tensor

from octavo.model.weights.grid import FINE_SCALE, fit, rounded, total
from octavo.model.weights.kinds import EVEN4, GROUP, INT4, INT8, INT8_FINE, MOST, Kind
from octavo.model.weights.parts import Parts

REFITS = 1  # for each scale that the search begins with
LOOKED_AT = 1 << 14  # weights of a matrix that show whether it was in even steps before
ON_STEPS = 1e-4  # of their squares: what even steps may lose of such weights, which 16 bits may have rounded since


def quantise(rows: Tensor, kind: Kind) -> Parts:
    """Quantises rows [n, in] float32, finite, whose inputs are whole groups of 32."""
    groups = rows.unflatten(1, (-1, GROUP))  # [n, groups, 32]
    if kind == INT8:
        return _round_int8(groups)
    if kind == INT8_FINE:
        return _round_fine(groups)
    if kind == EVEN4:
        return _round_even(groups)
    assert kind == INT4, "only checkpoints bring the other kinds"
    return _round_int4(groups)


def kind_for(rows: Tensor, kind: Kind) -> Kind:
    """Returns the kind that a matrix [out, in] gets where `kind` is wanted: EVEN4 if it was in such steps before.

    Steps are found where each 32 inputs have their lowest and their highest code, which `fit` begins with.
    """
    inputs = rows.shape[1] // GROUP * GROUP
    if kind != INT4 or inputs == 0:
        return kind
    groups = rows[: max(1, LOOKED_AT // inputs), :inputs].float().unflatten(1, (-1, GROUP))
    different = 1 + (groups.sort(dim=-1).values.diff(dim=-1) != 0).sum(-1)
    if different.max() > 16 or not _fits_float16(rows):
        return kind
    scales, minima = fit(groups, 15)
    quants = rounded(groups, scales, minima, 15)
    lost = quants * scales[..., None] + minima[..., None] - groups
    return EVEN4 if lost.square().sum() <= ON_STEPS * groups.square().sum() else kind


def _fits_float16(rows: Tensor) -> bool:
    """Returns whether float16 holds a scale for each group: not infinite, not too coarse."""
    largest = rows.abs().max().item()
    return 15 * FINE_SCALE <= largest <= torch.finfo(torch.float16).max


def _round_even(groups: Tensor) -> Parts:
    scales, minima = fit(groups, 15)
    codes = rounded(groups, scales, minima, 15).to(torch.uint8)
    return Parts(codes.flatten(1), torch.ones(len(groups)), scales.half(), minima.half())


def _round_int8(groups: Tensor) -> Parts:
    """Takes as scale the smallest multiple of the factor with which the largest weight is at most 127 steps."""
    wanted = groups.abs().amax(-1) / MOST  # [n, groups]
    factors = wanted.amax(-1) / MOST
    numbers = (wanted * _inverse(factors)[:, None]).ceil().clamp(max=MOST)
    return Parts(_bytes(groups, numbers * factors[:, None]), factors, numbers.to(torch.int8))


def _round_fine(groups: Tensor) -> Parts:
    """Takes a power of two as factor, which rounds nothing and keeps the scales in float16's range."""
    wanted = groups.abs().amax(-1) / MOST  # [n, groups]
    largest = wanted.amax(-1)
    factors = torch.where(largest > 0, torch.ldexp(torch.ones_like(largest), torch.frexp(largest).exponent), 0)
    numbers = (wanted * _inverse(factors)[:, None]).half()
    return Parts(_bytes(groups, numbers.float() * factors[:, None]), factors, numbers)


def _bytes(groups: Tensor, scales: Tensor) -> Tensor:
    """Returns the codes of 8 bits that are nearest, [n, in]."""
    codes = (groups * _inverse(scales)[..., None]).round().clamp(-MOST, MOST) + INT8.bias
    return codes.to(torch.uint8).flatten(1)


def _round_int4(groups: Tensor) -> Parts:
    """Gives a row's largest scale the number 126, so that the next odd number is in range, too."""
    wanted, odd = _search(groups)
    factors = wanted.abs().amax(-1) / (MOST - 1)
    quotients = wanted * _inverse(factors)[:, None]
    numbers = ((quotients - odd) * 0.5).round() * 2 + odd
    codes = _steps(groups * _inverse(numbers * factors[:, None])[..., None] - (odd * INT4.shift)[..., None])
    return Parts(codes.to(torch.uint8).flatten(1), factors, numbers.to(torch.int8))


def _search(groups: Tensor) -> tuple[Tensor, Tensor]:
    """Returns for each group the scale that loses little, and 1 if it goes with the shift: [n, groups] each.

    The largest weight is put at one end of the table or at the other, with and without the shift. Least squares over
    the codes gives a better scale, which gives other codes. With the scale that is best for some codes, the squared
    error is that of all zeros less dot^2 / square: the quotient is the score.
    """
    assert INT4.values is not None
    largest = _largest(groups)
    best_score = torch.full_like(largest, -1)
    best, odd = torch.zeros_like(largest), torch.zeros_like(largest)
    for shift in (0, INT4.shift):
        for end in (INT4.values[0], INT4.values[-1]):
            scale = largest * (1 / (end + shift))
            for _ in range(REFITS + 1):
                values = _nearest(groups * _inverse(scale)[..., None] - shift) + shift
                dot, square = total(values * groups), total(values * values)
                scale = dot / square.clamp(min=1)  # A square is a whole number, and 0 / 0 is no scale.
                score = dot * scale
                better = score > best_score
                best_score = torch.where(better, score, best_score)
                best = torch.where(better, scale, best)
                odd = torch.where(better, float(shift > 0), odd)
    return best, odd


def _largest(groups: Tensor) -> Tensor:
    """Returns the weight of the largest magnitude, with its sign."""
    low, high = groups.aminmax(dim=-1)
    return torch.where(high >= -low, high, low)


def _inverse(scales: Tensor) -> Tensor:
    """Returns 1 / scales, and 0 for scales below float32's normal numbers, whose inverse may be infinite."""
    return torch.where(scales.abs() >= torch.finfo(torch.float32).tiny, 1 / scales, 0)


def _steps(x: Tensor) -> Tensor:
    """Returns the codes of the nearest values; the lower one's where two are equally near."""
    values = torch.tensor(INT4.values, dtype=torch.float32)
    return (x[..., None] > (values[1:] + values[:-1]) / 2).sum(-1)


def _nearest(x: Tensor) -> Tensor:
    """Returns the values of INT4's table that are nearest."""
    return torch.tensor(INT4.values, dtype=torch.float32)[_steps(x)]
