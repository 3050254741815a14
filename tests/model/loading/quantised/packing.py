"""Packs known integers and scales into each format, bit by bit, from the formats' published descriptions.

Nothing here is shared with the code under test: each word is put together as a Python integer.

- GPTQ: https://github.com/AutoGPTQ/AutoGPTQ, and GPTQModel's conversion between versions 1 and 2
- AWQ: https://github.com/mit-han-lab/llm-awq, and AutoAWQ's order of the outputs in a word
- compressed-tensors: https://github.com/vllm-project/compressed-tensors
- NF4, FP4: https://arxiv.org/abs/2305.14314; bitsandbytes puts the first weight in the high half of a byte
- MXFP4: https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf
"""

import json
from collections.abc import Sequence

import torch
from torch import Tensor

Tensors = dict[str, Tensor]
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def word(codes: Sequence[int], bits: int, less: int = 0) -> int:
    """Returns a signed word of 32 bits whose first code is in the lowest bits, with `less` taken from each code."""
    value = sum((code - less) << (bits * place) for place, code in enumerate(codes)) % 2**32
    return value - 2**32 if value >= 2**31 else value


def words_down(rows: Sequence[Sequence[int]], bits: int, less: int = 0) -> Tensor:
    """Packs integers [n, columns] into words down the columns, [n / per word, columns]."""
    per = 32 // bits
    packed = [
        [word([rows[first + place][column] for place in range(per)], bits, less) for column in range(len(rows[0]))]
        for first in range(0, len(rows), per)
    ]
    return torch.tensor(packed, dtype=torch.int32)


def words_right(rows: Sequence[Sequence[int]], bits: int, less: int = 0) -> Tensor:
    """Packs integers [rows, n] into words along the rows, [rows, n / per word]; missing ones are 0."""
    per = 32 // bits
    packed = [[word(row[first : first + per], bits, less) for first in range(0, len(row), per)] for row in rows]
    return torch.tensor(packed, dtype=torch.int32)


def gptq(codes: Tensor, zeros: Tensor, scales: Tensor, bits: int, version: int = 1) -> Tensors:
    """Packs codes [out, in], zeros and scales [out, groups]."""
    less = 1 if version == 1 else 0
    return {
        "qweight": words_down(codes.T.tolist(), bits),
        "qzeros": words_right(zeros.T.tolist(), bits, less),
        "scales": scales.T.contiguous(),
    }


def awq(codes: Tensor, zeros: Tensor, scales: Tensor) -> Tensors:
    """Packs codes [out, in], zeros and scales [out, groups]."""

    def packed(numbers: Tensor) -> Tensor:
        rows = numbers.T.tolist()
        words = [
            [word([row[first + place] for place in AWQ_ORDER], 4) for first in range(0, len(row), 8)] for row in rows
        ]
        return torch.tensor(words, dtype=torch.int32)

    return {"qweight": packed(codes), "qzeros": packed(zeros), "scales": scales.T.contiguous()}


def pack_quantized(codes: Tensor, zeros: Tensor | None, scales: Tensor, bits: int) -> Tensors:
    """Packs codes [out, in] and zeros [out, groups], which have half of the range added, and scales [out, groups]."""
    tensors = {
        "weight_packed": words_right(codes.tolist(), bits),
        "weight_scale": scales,
        "weight_shape": torch.tensor(codes.shape),
    }
    if zeros is not None:
        tensors["weight_zero_point"] = words_right(zeros.T.tolist(), bits).T.contiguous()
    return tensors


def four_bits(codes: Tensor, absmax: Tensor, meaning: Tensor, block: int, kind: str) -> Tensors:
    """Packs codes [out, in] of bitsandbytes, with a factor for each block of consecutive weights."""
    flat = codes.flatten().tolist()
    pairs = [[16 * flat[first] + flat[first + 1]] for first in range(0, len(flat), 2)]
    state = {"quant_type": kind, "blocksize": block, "dtype": "bfloat16", "shape": list(codes.shape)}
    return {
        "weight": torch.tensor(pairs, dtype=torch.uint8),
        "weight.absmax": absmax,
        "weight.quant_map": meaning,
        f"weight.quant_state.bitsandbytes__{kind}": as_bytes(state),
    }


def nested(tensors: Tensors, kind: str, absmax: Tensor, meaning: Tensor, block: int, offset: float) -> Tensors:
    """Puts codes in the place of the factors, which further factors and a map turn into factors."""
    name = f"weight.quant_state.bitsandbytes__{kind}"
    state = json.loads(bytes(tensors[name].tolist()))
    state |= {"nested_blocksize": block, "nested_dtype": "float32", "nested_offset": offset}
    return tensors | {"weight.nested_absmax": absmax, "weight.nested_quant_map": meaning, name: as_bytes(state)}


def mxfp4(codes: Tensor, scales: Tensor) -> Tensors:
    """Packs codes [out, in] in blocks of 32; scales [out, in / 32]."""
    blocks = [
        [
            [row[first + place] + 16 * row[first + place + 1] for place in range(0, 32, 2)]
            for first in range(0, len(row), 32)
        ]
        for row in codes.tolist()
    ]
    return {"blocks": torch.tensor(blocks, dtype=torch.uint8), "scales": scales}


def as_bytes(values: object) -> Tensor:
    return torch.tensor(list(json.dumps(values).encode()), dtype=torch.uint8)
