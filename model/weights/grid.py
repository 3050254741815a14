"""Rounds weights to grids, and finds the scale and the min of each int4 group that lose little."""

import math

import torch
from torch import Tensor

CUTS = (0, 2)  # steps that the first grids leave out of a group's range
REFITS = 3  # for each first grid
FINE_SCALE = 2.0**-17  # subnormal in float16, and still exact to 1/256


def fit(groups: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Returns scales and mins [...] of groups [..., n], with little squared error: float32, exact in float16.

    A group is rounded to the grid between its extremes, and to a finer one that cuts them off. Least squares over the
    quants gives a better grid, which gives other quants, and so on.
    """
    low, high = groups.aminmax(dim=-1)
    least = torch.full_like(low, math.inf)
    best = torch.zeros_like(low), torch.zeros_like(low)
    for cut in CUTS:
        step = (high - low) / (levels + cut)
        grid = _half(step), _half(low + _half(step) * (cut / 2))
        for _ in range(REFITS + 1):
            quants = rounded(groups, *grid, levels)
            errors = total((quants * grid[0][..., None] + grid[1][..., None] - groups).square())
            best = torch.where(errors < least, grid[0], best[0]), torch.where(errors < least, grid[1], best[1])
            least = torch.minimum(errors, least)
            grid = _least_squares(groups, quants)
    return best


def divisor(scales: Tensor) -> Tensor:
    """Returns the divisors that turn weights into quants: the scales, and infinity for a scale of 0."""
    return scales.masked_fill(scales == 0, math.inf)


def rounded(groups: Tensor, scales: Tensor, mins: Tensor, levels: int) -> Tensor:
    """Rounds groups [..., n] to the nearest whole numbers of their grids, from 0 to levels; a scale of 0 gives 0."""
    inverse = torch.where(scales > 0, 1 / scales, 0)
    return ((groups - mins[..., None]) * inverse[..., None]).round_().clamp_(0, levels)


def _least_squares(groups: Tensor, quants: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the grid whose points at the quants are nearest to the weights."""
    count = groups.shape[-1]
    weights, sums = total(groups), total(quants)
    spread = count * total(quants.square()) - sums.square()  # exact; zero if all quants are the same
    slope = count * total(quants * groups) - sums * weights
    scales = _half(torch.where(spread > 0, slope / spread, 0))
    return scales, _half((weights - scales * sums) / count)


def total(values: Tensor) -> Tensor:
    """Sums [..., n], n a power of two, in the order of quantise.h: halves are added, then quarters, and so on."""
    if values.device.type != "cpu":  # Here no C kernel must give the same bits, and each addition is a launch.
        return values.sum(-1)
    while values.shape[-1] > 1:
        low, high = values.chunk(2, dim=-1)
        values = low + high
    return values[..., 0]


def _half(values: Tensor) -> Tensor:
    return values.half().float()
