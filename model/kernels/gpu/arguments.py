"""Makes the arguments that describe a stack of weights to every kernel that multiplies by it."""

from dataclasses import dataclass
from math import gcd

import torch
from torch import Tensor

from octavo.model.kernels.gpu.configs import Config
from octavo.model.weights.row_major import ROW_GROUP
from octavo.model.weights.stack import Format, Stack


@dataclass(frozen=True, slots=True)
class Tiles:
    """A Tiles says how a kernel that multiplies by weights cuts its work, and how it reads them; it is compiled so."""

    format: Format
    rows: int
    tokens: int
    inputs: int
    stages: int
    even: bool  # whether the inputs are whole tiles
    even_rows: bool


def weight_arguments(stack: Stack) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, int, int, int]:
    """Returns quants, scales, offsets and factors of all experts; how many inputs, quants and groups a row has."""
    scales, groups = stack.scales, 1
    if scales is not None:
        groups = scales.shape[1]
        if scales.dim() == 4:  # a word holds all numbers of the last dimension
            scales = scales.view(torch.int32)
    return stack.quants, scales, stack.offsets, stack.factors, stack.shape[1], stack.quants.shape[2], groups


def weight_constants(stack: Stack, config: Config, even_rows: bool) -> dict[str, Tiles | int]:
    """Returns the compile-time arguments of the kernels; even_rows says whether the outputs are whole tiles."""
    inputs = tile_inputs(stack.format, config.inputs)
    even = stack.shape[1] % inputs == 0
    return {
        "TILES": Tiles(stack.format, config.rows, config.tokens, inputs, config.stages, even, even_rows),
        "num_warps": config.warps,
        "num_stages": config.stages,
    }


def tile_inputs(weights: Format, wanted: int) -> int:
    """Returns the inputs of a tile: words of four bits come in 128, and a tile of eight bits has one group."""
    if weights.kind in ("int4", "fp4"):
        return ROW_GROUP
    return gcd(wanted, weights.group) if weights.group else wanted
