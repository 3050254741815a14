"""Reads the numbers of a group of weights: its scale, and its zero or minimum.

FORMAT is the Format of the weights (model/weights/stack.py); RowMajorForm says how the numbers lie in memory. Numbers
of 16 bits lie two in a word, which is what a copy into shared memory moves at least.
"""

import triton
import triton.language as tl


@triton.jit
def numbers_at(scales, offsets, at, factor, FORMAT: tl.constexpr):
    """Returns each row's scale and offset of the group that is `at` numbers on, both [ROWS] float32.

    A minimum stands beside a scale that `factor` [ROWS] has multiplied. Without offsets, both are the scale.
    """
    if FORMAT.scale == "float32":
        scale = tl.load(scales + at)
        offset = scale if FORMAT.offset == "none" else tl.load(offsets + at)
    else:
        word = tl.load(scales + at)
        scale = _number(word, FORMAT)
        if FORMAT.offset == "zero":
            offset = (word >> 16).to(tl.float32)  # a whole number with its sign
        else:
            offset = _number(word >> 16, FORMAT) if FORMAT.offset == "minimum" else scale
    if FORMAT.offset == "minimum":
        scale *= factor
    return scale, offset


@triton.jit
def power_of_two(word, BYTE: tl.constexpr):
    """Returns 2 to the power of a byte of each word less 127, which is a scale in E8M0: [ROWS] float32."""
    exponent = (word >> (8 * BYTE)) & 255
    # Below the smallest normal number lies one power more.
    return tl.where(exponent == 0, 1 << 22, exponent << 23).to(tl.float32, bitcast=True)


@triton.jit
def _number(word, FORMAT: tl.constexpr):
    """Returns the lower half of words as the number in 16 bits that it is, in float32."""
    if FORMAT.scale == "bfloat16":
        number = (word << 16).to(tl.float32, bitcast=True)
    else:
        number = (word & 0xFFFF).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    return number


@triton.jit
def moved(pointer, by):
    """Returns pointers `by` numbers further on, or None where there are no such numbers."""
    return None if pointer is None else pointer + by
