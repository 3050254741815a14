"""Multiplies by a quantised matrix that every token passes, such as attention's or the head.

A program takes a tile of tokens and a block of rows, in the order of experts.py, and multiplies as an expert does.
Where the blocks alone would leave SMs idle, the inputs are cut into config.splits ranges; a second kernel adds their
sums in a fixed order, so a row's bits depend on that row and the configuration alone.

The floor is to read the weights once: 4096 x 4096 in 4 bits, with their scales, are 8.9 MB, 3 us at 3.0 TB/s.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.model.kernels.gpu.arguments import weight_arguments, weight_constants
from octavo.model.kernels.gpu.configs import Config, choose
from octavo.model.kernels.gpu.experts import tile_and_block
from octavo.model.kernels.gpu.numbers import moved
from octavo.model.kernels.gpu.product import product, tiles_of
from octavo.model.ops.linear import linear as plain_linear
from octavo.model.weights.forms import Weight
from octavo.model.weights.stack import Stack, StackedWeight

_SUMMED = 1024  # numbers that a program adds up


def linear(x: Tensor, weight: Weight, arch: str) -> Tensor:
    """Multiplies x [T, in] by weight [out, in] transposed; returns [T, out] in the dtype of x.

    Raises ModelError for a kind of weight that the architecture has no configuration for.
    """
    if not isinstance(weight, StackedWeight):
        return plain_linear(x, weight)
    stack = Stack.of((weight,))
    if stack.order is not None:
        x = x.index_select(1, stack.order[0])
    return multiply(x.contiguous(), stack, choose("linear.multiply", stack.kind, stack.shape, x.shape[0], arch))


def multiply(x: Tensor, stack: Stack, config: Config) -> Tensor:
    """Multiplies x [T, in], in the order of the weights, by the only matrix of a stack [1, out, in] transposed."""
    tokens, outputs = x.shape[0], stack.shape[0]
    out = x.new_empty(tokens, outputs)
    partials = out if config.splits == 1 else x.new_empty(config.splits, tokens, outputs, dtype=torch.float32)
    tiles, blocks = triton.cdiv(tokens, config.tokens), triton.cdiv(outputs, config.rows)
    _multiply[(tiles * blocks, config.splits)](
        x,
        *weight_arguments(stack),
        partials,
        tokens,
        tiles,
        blocks,
        outputs,
        **weight_constants(stack, config, outputs % config.rows == 0),
    )
    if config.splits > 1:
        size = out.numel()
        _sum[(triton.cdiv(size, _SUMMED),)](partials, out, size, SPLITS=config.splits, BLOCK=_SUMMED)
    return out


@triton.jit(do_not_specialize=["tokens", "tiles"])
def _multiply(
    x_ptr,
    quants_ptr,
    scales_ptr,
    offsets_ptr,
    factors_ptr,
    inputs,
    width,
    groups,
    out_ptr,
    tokens,
    tiles,
    blocks,
    outputs,
    TILES: tl.constexpr,
):
    tile, block = tile_and_block(tiles, blocks)
    at = block * TILES.rows + tl.arange(0, TILES.rows)
    row = (at if TILES.even_rows else tl.minimum(at, outputs - 1)).to(tl.int64)  # A head may have more than 2**31.
    token = tile * TILES.tokens + tl.arange(0, TILES.tokens)
    there = token < tokens
    tiles_in_k = tiles_of(inputs, TILES)
    share = tl.cdiv(tiles_in_k, tl.num_programs(1))
    first = tl.program_id(1) * share
    last = tl.minimum(first + share, tiles_in_k)
    acc = product(
        x_ptr + token.to(tl.int64)[None, :] * inputs,
        there,
        quants_ptr + (row * width)[:, None],
        moved(scales_ptr, row),
        moved(offsets_ptr, row),
        moved(factors_ptr, row),
        outputs,
        inputs,
        first,
        last,
        TILES,
    )
    target = (tl.program_id(1) * tokens + token).to(tl.int64) * outputs
    stored = there[None, :] & (at < outputs)[:, None]
    tl.store(out_ptr + target[None, :] + at[:, None], acc.to(out_ptr.dtype.element_ty), mask=stored)


@triton.jit(do_not_specialize=["size"])
def _sum(partials_ptr, out_ptr, size, SPLITS: tl.constexpr, BLOCK: tl.constexpr):
    """Adds the splits of each number, one after the other."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    total = tl.load(partials_ptr + at, mask=inside, other=0)
    for split in tl.static_range(1, SPLITS):
        total += tl.load(partials_ptr + split * size.to(tl.int64) + at, mask=inside, other=0)
    tl.store(out_ptr + at, total.to(out_ptr.dtype.element_ty), mask=inside)
