"""Lists the types that a tensor of a GGUF file may have: how many weights a block holds, in how many bytes.

The numbers and sizes are those of ggml (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).
"""

from enum import Enum


class TensorType(Enum):
    """A TensorType is one that Octavo reads: its number in a file, the weights of a block, the block's bytes."""

    F32 = (0, 1, 4)
    F16 = (1, 1, 2)
    BF16 = (30, 1, 2)
    Q4_0 = (2, 32, 18)
    Q4_1 = (3, 32, 20)
    Q5_0 = (6, 32, 22)
    Q5_1 = (7, 32, 24)
    Q8_0 = (8, 32, 34)
    Q4_K = (12, 256, 144)
    Q5_K = (13, 256, 176)
    Q6_K = (14, 256, 210)

    def __init__(self, number: int, weights: int, bytes: int) -> None:
        self.number, self.weights, self.bytes = number, weights, bytes


BY_NUMBER = {each.number: each for each in TensorType}

# Types that are refused by name.
OTHERS = {
    9: "Q8_1",
    10: "Q2_K",
    11: "Q3_K",
    15: "Q8_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    20: "IQ4_NL",
    21: "IQ3_S",
    22: "IQ2_S",
    23: "IQ4_XS",
    24: "I8",
    25: "I16",
    26: "I32",
    27: "I64",
    28: "F64",
    29: "IQ1_M",
    34: "TQ1_0",
    35: "TQ2_0",
    39: "MXFP4",
    40: "NVFP4",
    41: "Q1_0",
}
