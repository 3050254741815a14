"""Computes the product inside an expert: a tile of weights of any kind times a tile of tokens, over a range of inputs.

    acc[ROWS, TOKENS] += weights[ROWS, INPUTS] @ x[INPUTS, TOKENS]       rows: outputs, on the M side of the matrix unit

Weights are on the M side because there are many of them and few tokens: M is at least 16 or 64, N is at least 8. They
go from memory through a ring of STAGES tiles in shared memory (cp.async, 16 bytes a thread) and become 16-bit numbers
in registers. Whole numbers up to 256 are exact there, so the scales are applied to the sums and never to the weights.

int8 and fp8 are converted. A masked int4 word is already two numbers: its four bits lie at the top of the mantissa,
under the exponent of 16, so each reads 16 + quant. The sums are corrected for these 16 and for the group's min:

    sum of (scale quant + min) * x  =  scale * (sum of (16 + quant) * x)  +  (min - 16 scale) * (sum of x)

The sum of x is one more product, with constants, so each thread has it where it needs it and no thread waits for
another.
"""

import triton
import triton.language as tl

from octavo.model.weights.row_major import ROW_GROUP, WORDS

_GROUP = tl.constexpr(ROW_GROUP)
_WORDS = tl.constexpr(WORDS)


@triton.jit
def tiles_of(inputs, KIND: tl.constexpr, INPUTS: tl.constexpr):
    """Returns the number of tiles that cover the inputs."""
    return tl.cdiv(inputs, _GROUP if KIND == "int4" else INPUTS)


@triton.jit
def product(
    x,  # [1, TOKENS] pointers to the first input of each token
    wanted,  # [TOKENS] whether to read each token; zeros otherwise
    quants,  # [ROWS, 1] pointers to the first quant of each row
    scales,  # [ROWS] pointers to the scale of each row's first group; for int4, to scale and min in one word
    rows_between_groups,
    inputs,
    first,  # tile, see tiles_of
    last,  # exclusive
    KIND: tl.constexpr,
    GROUPED: tl.constexpr,
    INPUTS: tl.constexpr,
    EVEN: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Returns acc [ROWS, TOKENS] float32, summed over the inputs first * INPUTS : last * INPUTS."""
    if KIND == "int4":
        acc = _int4(x, wanted, quants, scales, rows_between_groups, inputs, first, last, EVEN, STAGES)
    else:
        acc = _converted(
            x, wanted, quants, scales, rows_between_groups, inputs, first, last, GROUPED, INPUTS, EVEN, STAGES
        )
        if (KIND == "int8" or KIND == "fp8") and not GROUPED:
            acc *= tl.load(scales)[:, None]
    return acc


@triton.jit
def _converted(
    x,
    wanted,
    quants,
    scales,
    rows_between_groups,
    inputs,
    first,
    last,
    GROUPED: tl.constexpr,
    INPUTS: tl.constexpr,
    EVEN: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Sums products of weights that are converted to the tokens' dtype."""
    dtype = x.dtype.element_ty
    at = tl.arange(0, INPUTS)
    acc = tl.zeros((quants.shape[0], x.shape[1]), tl.float32)
    for tile in tl.range(first, last, num_stages=STAGES):
        begin = tile * INPUTS
        if EVEN:
            held = tl.load(quants + (begin + at)[None, :])  # [ROWS, INPUTS]
            tokens = tl.load(x + (begin + at)[:, None], mask=wanted[None, :], other=0.0)  # [INPUTS, TOKENS]
        else:
            there = begin + at < inputs
            held = tl.load(quants + (begin + at)[None, :], mask=there[None, :], other=0.0)
            tokens = tl.load(x + (begin + at)[:, None], mask=there[:, None] & wanted[None, :], other=0.0)
        # The way leads over float32, since no fast instruction converts fp8 to bfloat16. 16-bit numbers stay the same.
        weights = held.to(tl.float32).to(dtype)
        if GROUPED:
            scale = tl.load(scales + begin // _GROUP * rows_between_groups)  # [ROWS]
            acc += tl.dot(weights, tokens, input_precision="ieee") * scale[:, None]
        else:
            acc = tl.dot(weights, tokens, acc, input_precision="ieee")
    return acc


@triton.jit
def _int4(
    x,
    wanted,
    quants,
    scales,
    rows_between_groups,
    inputs,
    first,
    last,
    EVEN: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Sums products of int4 weights, group by group."""
    dtype = x.dtype.element_ty
    acc = tl.zeros((quants.shape[0], x.shape[1]), tl.float32)
    for group in tl.range(first, last, num_stages=STAGES):
        at = tl.arange(0, _GROUP) + group * _GROUP
        there = wanted[None, :] if EVEN else (at < inputs)[:, None] & wanted[None, :]
        tokens = tl.load(x + at[:, None], mask=there, other=0.0)  # [128, TOKENS]
        words = tl.load(quants + (tl.arange(0, _WORDS) + group * _WORDS)[None, :])  # [ROWS, 16]
        word = tl.load(scales + group * rows_between_groups)  # [ROWS], scale and min
        scale = (word & 0xFFFF).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
        least = (word >> 16).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
        products = tl.dot(unpacked(words, dtype), tokens, input_precision="ieee")
        # These quants are all 0, which only the last compiler finds out. So both products want the tokens in one
        # layout; otherwise the tokens would not be loaded ahead.
        none = (words & 15) >> 4
        sixteens = tl.dot(unpacked(none, dtype), tokens, input_precision="ieee")  # 16 * (sum of x), in each row
        acc += products * scale[:, None] + sixteens * (least * 0.0625 - scale)[:, None]
    return acc


@triton.jit
def unpacked(words, dtype: tl.constexpr):
    """Unpacks words [ROWS, 16] int32 into 16 + quant of their inputs, [ROWS, 128] of dtype (see Int4RowMajor)."""
    even = tl.join(unpacked_quarter(words, 0, dtype), unpacked_quarter(words, 2, dtype))  # [ROWS, 32, 2]
    odd = tl.join(unpacked_quarter(words, 1, dtype), unpacked_quarter(words, 3, dtype))
    return tl.reshape(tl.permute(tl.join(even, odd), (0, 2, 3, 1)), (words.shape[0], _GROUP))


@triton.jit
def unpacked_quarter(words, QUARTER: tl.constexpr, dtype: tl.constexpr):
    """Unpacks words [R, 16] int32 into 16 + quant of a quarter of their inputs, [R, 32] of dtype (see Int4RowMajor)."""
    # For float32 the way leads over bfloat16, which holds these numbers.
    mantissa: tl.constexpr = 10 if dtype == tl.float16 else 7
    bits: tl.constexpr = tl.float16 if dtype == tl.float16 else tl.bfloat16
    sixteen: tl.constexpr = 0x4C00 if dtype == tl.float16 else 0x4180
    left: tl.constexpr = mantissa - 4 - 4 * QUARTER
    shifted = words << left if left >= 0 else words >> -left
    masked = (shifted & ((15 << (mantissa - 4)) * 0x10001)) | (sixteen * 0x10001)
    low = (masked & 0xFFFF).to(tl.int16).to(bits, bitcast=True)
    high = (masked >> 16).to(tl.int16).to(bits, bitcast=True)
    return tl.reshape(tl.join(low, high), (words.shape[0], 2 * words.shape[1])).to(dtype)
