"""Computes the product inside an expert: a tile of weights of any kind times a tile of tokens, over a range of inputs.

    acc[ROWS, TOKENS] += weights[ROWS, INPUTS] @ x[INPUTS, TOKENS]       rows: outputs, on the M side of the matrix unit

Weights are on the M side because there are many of them and few tokens: M is at least 16 or 64, N is at least 8. They
go from memory through a ring of STAGES tiles in shared memory (cp.async, 16 bytes a thread) and become 16-bit numbers
in registers. Whole numbers up to 256 are exact there, so the scales are applied to the sums and never to the weights.

int8 and fp8 are converted; the zero of a group of int8 is taken from them before, in float32. The kinds of four bits
are in product4.py. TILES is a Tiles (arguments.py), whose Format says what the numbers mean (model/weights/stack.py).
"""

import triton
import triton.language as tl

from octavo.model.kernels.gpu.numbers import numbers_at
from octavo.model.kernels.gpu.product4 import product4


@triton.jit
def tiles_of(inputs, TILES: tl.constexpr):
    """Returns the number of tiles that cover the inputs."""
    return tl.cdiv(inputs, TILES.inputs)


@triton.jit
def product(
    x,  # [1, TOKENS] pointers to the first input of each token
    wanted,  # [TOKENS] whether to read each token; zeros otherwise
    quants,  # [ROWS, 1] pointers to the first quant of each row
    scales,  # [ROWS] pointers to the scale of each row's first group, as a word if an offset lies beside it, or None
    offsets,  # [ROWS] pointers to the offset of each row's first group, or None
    factors,  # [ROWS] pointers to the factor of each row, or None
    rows_between_groups,
    inputs,
    first,  # tile, see tiles_of
    last,  # exclusive
    TILES: tl.constexpr,
):
    """Returns acc [ROWS, TOKENS] float32, summed over the inputs of the tiles first : last."""
    if TILES.format.kind == "int4" or TILES.format.kind == "fp4":
        acc = product4(x, wanted, quants, scales, offsets, factors, rows_between_groups, inputs, first, last, TILES)
    else:
        acc = _converted(x, wanted, quants, scales, offsets, factors, rows_between_groups, inputs, first, last, TILES)
    if factors is not None and TILES.format.offset != "minimum":
        acc *= tl.load(factors)[:, None]
    # What has been added up in fp4 is E2M1 * 2**-14, and a code of it stands for twice its value.
    return acc * 32768 if TILES.format.kind == "fp4" else acc


@triton.jit
def _converted(
    x,
    wanted,
    quants,
    scales,
    offsets,
    factors,
    rows_between_groups,
    inputs,
    first,
    last,
    TILES: tl.constexpr,
):
    """Sums products of weights that are converted to the tokens' dtype."""
    dtype = x.dtype.element_ty
    at = tl.arange(0, TILES.inputs)
    acc = tl.zeros((quants.shape[0], x.shape[1]), tl.float32)
    factor = tl.full((quants.shape[0],), 1.0, tl.float32)
    if TILES.format.offset == "minimum" and factors is not None:
        factor = tl.load(factors)
    for tile in tl.range(first, last, num_stages=TILES.stages):
        begin = tile * TILES.inputs
        if TILES.even:
            held = tl.load(quants + (begin + at)[None, :])  # [ROWS, INPUTS]
            tokens = tl.load(x + (begin + at)[:, None], mask=wanted[None, :], other=0.0)  # [INPUTS, TOKENS]
        else:
            there = begin + at < inputs
            held = tl.load(quants + (begin + at)[None, :], mask=there[None, :], other=0.0)
            tokens = tl.load(x + (begin + at)[:, None], mask=there[:, None] & wanted[None, :], other=0.0)
        # The way leads over float32, since no fast instruction converts fp8 to bfloat16. 16-bit numbers stay the same.
        weights = held.to(tl.float32)
        if TILES.format.group == 0:
            if TILES.format.offset == "zero":
                weights -= tl.load(offsets)[:, None]
            acc = tl.dot(weights.to(dtype), tokens, acc, input_precision="ieee")
        else:
            group = begin // TILES.format.group * rows_between_groups
            scale, offset = numbers_at(scales, offsets, group, factor, TILES.format)
            if TILES.format.offset == "zero":
                weights -= offset[:, None]
            acc += tl.dot(weights.to(dtype), tokens, input_precision="ieee") * scale[:, None]
            if TILES.format.offset == "minimum":
                # These are all 1, which only the last compiler finds out (see product4.py).
                ones = (((held & 127) >> 7) + 1).to(tl.float32)
                acc += tl.dot(ones.to(dtype), tokens, input_precision="ieee") * offset[:, None]
    return acc
