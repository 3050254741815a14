"""Computes products of weights in four bits (see product.py), which Int4RowMajor shows in their words.

A masked word of int4 is already two numbers: its four bits lie at the top of the mantissa, under the exponent of 16, so
each reads 16 + code. The sums are corrected for these 16, for the value of code 0, and for the group's zero or minimum:

    sum of scale * (base + code - zero) * x  =  scale * (sum of (16 + code) * x  +  (base - zero - 16) * (sum of x))

The sum of x is one more product, with constants, so each thread has it where it needs it and no thread waits for
another. A zero is never multiplied in 16 bits.

A code of fp4 is a sign, two bits of an exponent and one of a mantissa. These are bits of float16, too, whose exponent
is 14 less; numbers below 1 are subnormal in both.

A tile is 128 inputs. Where groups are smaller, each quarter of the words is 32 consecutive inputs, and a product of its
own.
"""

import triton
import triton.language as tl

from octavo.model.kernels.gpu.numbers import numbers_at, power_of_two
from octavo.model.weights.row_major import ROW_GROUP, WORDS

_TILE = tl.constexpr(ROW_GROUP)
_QUARTER = tl.constexpr(ROW_GROUP // 4)
_WORDS = tl.constexpr(WORDS)


@triton.jit
def product4(
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
    """Does what product does, but for what the format has for a whole output."""
    acc = tl.zeros((quants.shape[0], x.shape[1]), tl.float32)
    factor = tl.full((quants.shape[0],), 1.0, tl.float32)
    if TILES.format.offset == "minimum" and factors is not None:
        factor = tl.load(factors)
    for tile in tl.range(first, last, num_stages=TILES.stages):
        words = tl.load(quants + (tl.arange(0, _WORDS) + tile * _WORDS)[None, :])  # [ROWS, 16]
        if TILES.format.group == 0 or TILES.format.group >= _TILE:
            tokens = _tokens(x, wanted, tl.arange(0, _TILE) + tile * _TILE, inputs, TILES.even)  # [128, TOKENS]
            products = tl.dot(unpacked(words, TILES.format.kind, tokens.dtype), tokens, input_precision="ieee")
            if TILES.format.group == 0:
                scale = factor
                offset = factor if TILES.format.offset == "none" else tl.load(offsets)
            else:
                at = tile * _TILE // TILES.format.group * rows_between_groups
                scale, offset = numbers_at(scales, offsets, at, factor, TILES.format)
            acc += products * scale[:, None]
            if TILES.format.kind == "int4":
                # These quants are all 0, which only the last compiler finds out. So both products want the tokens in
                # one layout; otherwise the tokens would not be loaded ahead.
                none = unpacked((words & 15) >> 4, "int4", tokens.dtype)
                sixteens = tl.dot(none, tokens, input_precision="ieee")  # 16 * (sum of x), in each row
                acc += sixteens * _correction(scale, offset, TILES.format)[:, None]
        else:
            acc = _quarters(acc, words, x, wanted, scales, offsets, factor, rows_between_groups, inputs, tile, TILES)
    return acc


@triton.jit
def _quarters(
    acc,
    words,
    x,
    wanted,
    scales,
    offsets,
    factor,
    rows_between_groups,
    inputs,
    tile,
    TILES: tl.constexpr,
):
    """Adds the products of a tile that has two or four groups."""
    groups: tl.constexpr = _TILE // TILES.format.group
    quarters: tl.constexpr = 4 // groups  # of each group
    exponents = tl.load(scales + tile * rows_between_groups) if TILES.format.scale == "e8m0" else 0
    for group in tl.static_range(groups):
        products = tl.zeros(acc.shape, tl.float32)
        sixteens = tl.zeros(acc.shape, tl.float32)
        for part in tl.static_range(quarters):
            # A name for the quarter could not stay a constant, since each turn would give it another value.
            at = tl.arange(0, _QUARTER) + tile * _TILE + (group * quarters + part) * _QUARTER
            tokens = _tokens(x, wanted, at, inputs, TILES.even)  # [32, TOKENS]
            codes = unpacked_quarter(words, group * quarters + part, TILES.format.kind, tokens.dtype)
            products = tl.dot(codes, tokens, products, input_precision="ieee")
            if TILES.format.kind == "int4":
                none = unpacked_quarter((words & 15) >> 4, group * quarters + part, "int4", tokens.dtype)
                sixteens = tl.dot(none, tokens, sixteens, input_precision="ieee")
        if TILES.format.scale == "e8m0":
            scale = power_of_two(exponents, group)
            offset = scale
        else:
            scale, offset = numbers_at(
                scales, offsets, (tile * groups + group) * rows_between_groups, factor, TILES.format
            )
        acc += products * scale[:, None]
        if TILES.format.kind == "int4":
            acc += sixteens * _correction(scale, offset, TILES.format)[:, None]
    return acc


@triton.jit
def _tokens(x, wanted, at, inputs, EVEN: tl.constexpr):
    """Returns the inputs `at` of each token, [inputs, TOKENS]; 0 for tokens that are not wanted and behind the last."""
    there = wanted[None, :] if EVEN else (at < inputs)[:, None] & wanted[None, :]
    return tl.load(x + at[:, None], mask=there, other=0.0)


@triton.jit
def _correction(scale, offset, FORMAT: tl.constexpr):
    """Returns what 16 * (sum of x) of each row is multiplied with, [ROWS] float32."""
    base: tl.constexpr = FORMAT.base / 16 - 1
    if FORMAT.offset == "zero":
        correction = (base - offset * 0.0625) * scale
    elif FORMAT.offset == "minimum":
        correction = offset * 0.0625 + base * scale
    else:
        correction = base * scale
    return correction


@triton.jit
def unpacked(words, KIND: tl.constexpr, dtype: tl.constexpr):
    """Unpacks words [ROWS, 16] int32 into the numbers of their inputs, [ROWS, 128] of dtype (see Int4RowMajor)."""
    even = tl.join(unpacked_quarter(words, 0, KIND, dtype), unpacked_quarter(words, 2, KIND, dtype))  # [ROWS, 32, 2]
    odd = tl.join(unpacked_quarter(words, 1, KIND, dtype), unpacked_quarter(words, 3, KIND, dtype))
    return tl.reshape(tl.permute(tl.join(even, odd), (0, 2, 3, 1)), (words.shape[0], _TILE))


@triton.jit
def unpacked_quarter(words, QUARTER: tl.constexpr, KIND: tl.constexpr, dtype: tl.constexpr):
    """Unpacks words [R, 16] int32 into the numbers of a quarter of their inputs, [R, 32] of dtype.

    They are 16 + code for int4, and the value as E2M1 * 2**-14 for fp4.
    """
    # For float32 the way of int4 leads over bfloat16, which holds these numbers.
    bits: tl.constexpr = tl.float16 if dtype == tl.float16 or KIND == "fp4" else tl.bfloat16
    if KIND == "int4":
        mantissa: tl.constexpr = 10 if dtype == tl.float16 else 7
        sixteen: tl.constexpr = 0x4C00 if dtype == tl.float16 else 0x4180
        shifted = _shifted(words, mantissa - 4 - 4 * QUARTER)
        masked = (shifted & ((15 << (mantissa - 4)) * 0x10001)) | (sixteen * 0x10001)
    else:
        sign = _shifted(words, 12 - 4 * QUARTER) & -0x7FFF8000  # 0x80008000
        masked = sign | (_shifted(words, 9 - 4 * QUARTER) & 0x0E000E00)
    low = (masked & 0xFFFF).to(tl.int16).to(bits, bitcast=True)
    high = (masked >> 16).to(tl.int16).to(bits, bitcast=True)
    numbers = tl.reshape(tl.join(low, high), (words.shape[0], 2 * words.shape[1]))
    # No instruction converts float16 to bfloat16; the way leads over float32.
    return numbers.to(dtype) if KIND == "int4" else numbers.to(tl.float32).to(dtype)


@triton.jit
def _shifted(words, LEFT: tl.constexpr):
    return words << LEFT if LEFT >= 0 else words >> -LEFT
