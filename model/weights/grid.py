"""The grids that weights are rounded to; for int4, the scale and the min of each group that lose least."""

import math

import torch
from torch import Tensor

CUTS = (0, 2)  # steps that the first grids leave out of a group's range
REFITS = 3  # of each of them
FINE_SCALE = 2.0**-17  # a scale in float16 that is known to 1/256, subnormal as it is


def fit(groups: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Scales and mins [...] of groups [..., n], for little squared error; float32, and what float16 holds.

    Rounding a group to the grid between its extremes, or to a finer one that cuts them off, says which quants the
    weights get; least squares over these quants gives a better grid, which gives other quants, and so on.
    """
    low, high = groups.aminmax(dim=-1)
    least = torch.full_like(low, math.inf)
    best = torch.zeros_like(low), torch.zeros_like(low)
    for cut in CUTS:
        step = (high - low) / (levels + cut)
        grid = _half(step), _half(low + _half(step) * (cut / 2))
        for _ in range(REFITS + 1):
            quants = rounded(groups, *grid, levels)
            errors = _total((quants * grid[0][..., None] + grid[1][..., None] - groups).square())
            best = torch.where(errors < least, grid[0], best[0]), torch.where(errors < least, grid[1], best[1])
            least = torch.minimum(errors, least)
            grid = _least_squares(groups, quants)
    return best


def divisor(scales: Tensor) -> Tensor:
    """What to divide by to get quants: the scales, and infinity for a scale of 0, whose quants are 0."""
    return scales.masked_fill(scales == 0, math.inf)


def rounded(groups: Tensor, scales: Tensor, mins: Tensor, levels: int) -> Tensor:
    """groups [..., n] on their grids: the nearest whole numbers from 0 to levels, zero where a scale is."""
    inverse = torch.where(scales > 0, 1 / scales, 0)
    return ((groups - mins[..., None]) * inverse[..., None]).round_().clamp_(0, levels)


def _least_squares(groups: Tensor, quants: Tensor) -> tuple[Tensor, Tensor]:
    """The grid whose points at the quants are nearest to the weights."""
    count = groups.shape[-1]
    weights, sums = _total(groups), _total(quants)
    spread = count * _total(quants.square()) - sums.square()  # exact; zero where all quants are the same
    slope = count * _total(quants * groups) - sums * weights
    scales = _half(torch.where(spread > 0, slope / spread, 0))
    return scales, _half((weights - scales * sums) / count)


def _total(values: Tensor) -> Tensor:
    """The sums of [..., n], n a multiple of 4, added in the order of quantise.h: four sums of every fourth number."""
    if values.device.type != "cpu":  # where no kernel in C must give the same bits, and each addition is a launch
        return values.sum(-1)
    total = values[..., :4]
    for part in values.split(4, dim=-1)[1:]:
        total = total + part
    return (total[..., 0] + total[..., 1]) + (total[..., 2] + total[..., 3])


def _half(values: Tensor) -> Tensor:
    return values.half().float()
