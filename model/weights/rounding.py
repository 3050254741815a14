"""Quantises rows to the kinds that Octavo makes itself: INT8, INT4 and EVEN4, in a slow and obvious way.

The C kernels give the same bits (quantise.h), so the order of each sum is part of what is said here.
"""

import torch
from torch import Tensor

from octavo.model.weights.kinds import EVEN4, GROUP, INT4, INT8, MOST, Kind, Scale
from octavo.model.weights.parts import Parts

REFITS = 1  # for each scale that the search begins with
LOOKED_AT = 1 << 14  # weights of a matrix that show whether it was in even steps before
ON_STEP, SHARE = 0.05, 0.99  # nearly all lie so near to a step, of which 16-bit numbers may miss a little


def quantise(rows: Tensor, kind: Kind) -> Parts:
    """Quantises rows [n, in] float32, finite, whose inputs are whole groups of 32."""
    groups = rows.unflatten(1, (-1, GROUP))  # [n, groups, 32]
    if kind == INT8:
        return _round_int8(groups)
    assert kind in (INT4, EVEN4), "only checkpoints bring the other kinds"
    return _round_int4(groups, kind)


def kind_for(rows: Tensor, kind: Kind) -> Kind:
    """Returns the kind that a matrix [out, in] gets where `kind` is wanted: EVEN4 if it was in such steps before."""
    inputs = rows.shape[1] // GROUP * GROUP
    if kind != INT4 or inputs == 0:
        return kind
    groups = rows[: max(1, LOOKED_AT // inputs), :inputs].float().unflatten(1, (-1, GROUP))
    assert EVEN4.values is not None
    steps = groups * _inverse(_largest(groups) * (1 / EVEN4.values[0]))[..., None]
    return EVEN4 if ((steps - steps.round()).abs() <= ON_STEP).float().mean() >= SHARE else kind


def _round_int8(groups: Tensor) -> Parts:
    """Takes as scale the smallest multiple of the factor with which the largest weight is at most 127 steps."""
    wanted = groups.abs().amax(-1) / MOST  # [n, groups]
    factors = wanted.amax(-1) / MOST
    numbers = (wanted * _inverse(factors)[:, None]).ceil().clamp(max=MOST)
    codes = (groups * _inverse(numbers * factors[:, None])[..., None]).round().clamp(-MOST, MOST) + INT8.bias
    return Parts(codes.to(torch.uint8).flatten(1), factors, numbers.to(torch.int8))


def _round_int4(groups: Tensor, kind: Kind) -> Parts:
    wanted, odd = _search(groups, kind)
    factors, numbers = _numbers(wanted, odd, kind)
    shifts = odd * kind.shift
    codes = _steps(groups * _inverse(numbers.float() * factors[:, None])[..., None] - shifts[..., None], kind)
    return Parts(codes.to(torch.uint8).flatten(1), factors, numbers)


def _numbers(wanted: Tensor, odd: Tensor, kind: Kind) -> tuple[Tensor, Tensor]:
    """Returns factors [n] and numbers [n, groups] whose products are near to the wanted scales.

    In int8, a row's largest scale gets the number 126, so that the next odd number is in range, too.
    """
    largest = wanted.abs().amax(-1)
    if kind.scale is Scale.FLOAT16:  # A power of two keeps them within float16's normal numbers, and rounds nothing.
        factors = torch.ldexp((largest > 0).float(), torch.frexp(largest).exponent)
        return factors, (wanted * _inverse(factors)[:, None]).half()
    factors = largest / (MOST - 1)
    quotients = wanted * _inverse(factors)[:, None]
    return factors, (((quotients - odd) * 0.5).round() * 2 + odd).to(torch.int8)


def _search(groups: Tensor, kind: Kind) -> tuple[Tensor, Tensor]:
    """Returns for each group the scale that loses little, and 1 if it goes with the shift: [n, groups] each.

    The largest weight is put at one end of the table or at the other, with and without the shift. Least squares over
    the codes gives a better scale, which gives other codes. With the scale that is best for some codes, the squared
    error is that of all zeros less dot^2 / square: the quotient is the score.
    """
    assert kind.values is not None
    largest = _largest(groups)
    best_score = torch.full_like(largest, -1)
    best, odd = torch.zeros_like(largest), torch.zeros_like(largest)
    for shift in (0, kind.shift) if kind.shift else (0,):
        for end in (kind.values[0], kind.values[-1]):
            scale = largest * (1 / (end + shift))
            for _ in range(REFITS + 1):
                values = _nearest(groups * _inverse(scale)[..., None] - shift, kind) + shift
                dot, square = _total(values * groups), _total(values * values)
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


def _steps(x: Tensor, kind: Kind) -> Tensor:
    """Returns the codes of the nearest values; the lower one's where two are equally near."""
    values = torch.tensor(kind.values, dtype=torch.float32)
    return (x[..., None] > (values[1:] + values[:-1]) / 2).sum(-1)


def _nearest(x: Tensor, kind: Kind) -> Tensor:
    """Returns the values of the kind's table that are nearest."""
    return torch.tensor(kind.values, dtype=torch.float32)[_steps(x, kind)]


def _total(products: Tensor) -> Tensor:
    """Sums [..., 32] in the order of quantise.h: halves are added, then quarters, and so on."""
    while products.shape[-1] > 1:
        low, high = products.chunk(2, dim=-1)
        products = low + high
    return products[..., 0]
