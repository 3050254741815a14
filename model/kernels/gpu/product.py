"""The product inside an expert: a tile of weights of any kind, times a tile of tokens, summed along a range of inputs.

    acc[ROWS, TOKENS] += weights[ROWS, INPUTS] @ x[INPUTS, TOKENS]       rows: outputs, on the M side of the matrix unit

Weights are on the M side because there are many of them and few tokens: M is 16 or 64 at least, N is 8. They go from
memory through the shared memory's ring of STAGES tiles (cp.async, 16 bytes a thread) and become 16-bit numbers in
registers; whole numbers up to 256 are exact there, so the scales are applied to the sums, never to the weights.

int8 and fp8 are converted. Of int4, a masked word is already a pair of numbers: with its four bits at the top of the
mantissa, under the exponent of 16, it reads 16 + quant. What that and the group's min add is put right in the sums,

    sum of (step quant + min) * x  =  step * (sum of (16 + quant) * x)  +  (min - 16 step) * (sum of x)

and the sum of x is one more product, with ones: it comes out where it is needed, without a word between the threads.
"""

import triton
import triton.language as tl

from octavo.model.weights.row_major import ROW_GROUP, WORDS

_GROUP = tl.constexpr(ROW_GROUP)
_WORDS = tl.constexpr(WORDS)


@triton.jit
def steps_of(inputs, KIND: tl.constexpr, INPUTS: tl.constexpr):
    """How many tiles the inputs are."""
    return tl.cdiv(inputs, _GROUP if KIND == "int4" else INPUTS)


@triton.jit
def product(
    x,  # [1, TOKENS] pointers to the first input of each token
    wanted,  # [TOKENS] whether to read it; zeros otherwise
    quants,  # [ROWS, 1] pointers to the first quant of each row
    scales,  # [ROWS] pointers to the scale of the first group of each row; of int4, to step and min in one word
    rows_between_groups,
    inputs,
    first,  # of steps_of
    last,
    KIND: tl.constexpr,
    GROUPED: tl.constexpr,
    INPUTS: tl.constexpr,
    EVEN: tl.constexpr,
    STAGES: tl.constexpr,
):
    """acc [ROWS, TOKENS] float32 of the inputs first * INPUTS : last * INPUTS."""
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
    dtype = x.dtype.element_ty
    at = tl.arange(0, INPUTS)
    acc = tl.zeros((quants.shape[0], x.shape[1]), tl.float32)
    for step in tl.range(first, last, num_stages=STAGES):
        begin = step * INPUTS
        if EVEN:
            held = tl.load(quants + (begin + at)[None, :])  # [ROWS, INPUTS]
            tokens = tl.load(x + (begin + at)[:, None], mask=wanted[None, :], other=0.0)  # [INPUTS, TOKENS]
        else:
            there = begin + at < inputs
            held = tl.load(quants + (begin + at)[None, :], mask=there[None, :], other=0.0)
            tokens = tl.load(x + (begin + at)[:, None], mask=there[:, None] & wanted[None, :], other=0.0)
        # By way of float32, since no quick instruction leads from fp8 to bfloat16; 16 bits stay what they are.
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
    dtype = x.dtype.element_ty
    acc = tl.zeros((quants.shape[0], x.shape[1]), tl.float32)
    for group in tl.range(first, last, num_stages=STAGES):
        at = tl.arange(0, _GROUP) + group * _GROUP
        there = wanted[None, :] if EVEN else (at < inputs)[:, None] & wanted[None, :]
        tokens = tl.load(x + at[:, None], mask=there, other=0.0)  # [128, TOKENS]
        words = tl.load(quants + (tl.arange(0, _WORDS) + group * _WORDS)[None, :])  # [ROWS, 16]
        scale = tl.load(scales + group * rows_between_groups)  # [ROWS]
        step = (scale & 0xFFFF).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
        least = (scale >> 16).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
        products = tl.dot(unpacked(words, dtype), tokens, input_precision="ieee")
        # Quants that are all 0, by a way that only the last compiler sees through: both products are to want the
        # tokens in one layout, for only then are these loaded ahead.
        none = (words & 15) >> 4
        sixteens = tl.dot(unpacked(none, dtype), tokens, input_precision="ieee")  # 16 * (sum of x), in each row
        acc += products * step[:, None] + sixteens * (least * 0.0625 - step)[:, None]
    return acc


@triton.jit
def unpacked(words, dtype: tl.constexpr):
    """words [ROWS, 16] int32 -> 16 + quant of their inputs, [ROWS, 128] of dtype (see Int4RowMajor)."""
    even = tl.join(unpacked_quarter(words, 0, dtype), unpacked_quarter(words, 2, dtype))  # [ROWS, 32, 2]
    odd = tl.join(unpacked_quarter(words, 1, dtype), unpacked_quarter(words, 3, dtype))
    return tl.reshape(tl.permute(tl.join(even, odd), (0, 2, 3, 1)), (words.shape[0], _GROUP))


@triton.jit
def unpacked_quarter(words, QUARTER: tl.constexpr, dtype: tl.constexpr):
    """words [R, 16] int32 -> 16 + quant of a quarter of their inputs, [R, 32] of dtype (see Int4RowMajor)."""
    # float32 goes through bfloat16, which holds these numbers.
    mantissa: tl.constexpr = 10 if dtype == tl.float16 else 7
    bits: tl.constexpr = tl.float16 if dtype == tl.float16 else tl.bfloat16
    sixteen: tl.constexpr = 0x4C00 if dtype == tl.float16 else 0x4180
    left: tl.constexpr = mantissa - 4 - 4 * QUARTER
    shifted = words << left if left >= 0 else words >> -left
    masked = (shifted & ((15 << (mantissa - 4)) * 0x10001)) | (sixteen * 0x10001)
    low = (masked & 0xFFFF).to(tl.int16).to(bits, bitcast=True)
    high = (masked >> 16).to(tl.int16).to(bits, bitcast=True)
    return tl.reshape(tl.join(low, high), (words.shape[0], 2 * words.shape[1])).to(dtype)
