"""Packs whole numbers into the blocks of ggml's K types, one number after the other, as the layouts are described.

This shares no code with octavo.model.gguf.blocks. The description is that of ggml-common.h in llama.cpp.
"""

import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Block:
    """A Block is what 256 weights are made of: d * scales[g] * codes[g][n] - dmin * minima[g], g being n // 32."""

    codes: list[int]  # 256
    scales: list[int]  # 8, from 0 to 63
    minima: list[int]
    d: float
    dmin: float

    def weights(self) -> list[float]:
        return [
            self.d * self.scales[n // 32] * code - self.dmin * self.minima[n // 32] for n, code in enumerate(self.codes)
        ]


def q4_k(block: Block) -> bytes:
    return _head(block) + _low_halves(block)


def q5_k(block: Block) -> bytes:
    high = bytearray(32)
    for n, code in enumerate(block.codes):
        high[n % 32] |= (code >> 4) << (n // 32)
    return _head(block) + bytes(high) + _low_halves(block)


def q6_k(codes: list[int], scales: list[int], d: float) -> bytes:
    """Packs 256 codes from 0 to 63 and 16 scales from -128 to 127: d * scales[n // 16] * (codes[n] - 32)."""
    low, high = bytearray(128), bytearray(64)
    for n, code in enumerate(codes):
        half, rest = divmod(n, 128)
        low[half * 64 + rest % 64] |= (code & 15) << (4 * (rest // 64))
        high[half * 32 + rest % 32] |= (code >> 4) << (2 * (rest // 32))
    return bytes(low) + bytes(high) + struct.pack("<16b", *scales) + struct.pack("<e", d)


def _head(block: Block) -> bytes:
    """Packs d, dmin and the numbers of 6 bits: of the last four, the high 2 bits lie above the first four."""
    packed = bytearray(12)
    for n in range(4):
        packed[n] = block.scales[n] | (block.scales[n + 4] >> 4) << 6
        packed[n + 4] = block.minima[n] | (block.minima[n + 4] >> 4) << 6
        packed[n + 8] = block.scales[n + 4] & 15 | (block.minima[n + 4] & 15) << 4
    return struct.pack("<ee", block.d, block.dmin) + bytes(packed)


def _low_halves(block: Block) -> bytes:
    packed = bytearray(128)
    for n, code in enumerate(block.codes):
        quarter, rest = divmod(n, 64)
        packed[quarter * 32 + rest % 32] |= (code & 15) << (4 * (rest // 32))
    return bytes(packed)


def rounded(weights: Array, levels: int) -> Block:
    """Rounds 256 weights to some numbers of steps; it need not be the best way."""
    groups = weights.reshape(8, 32).astype(float)
    low = np.minimum(groups.min(1), 0)
    steps = np.maximum((groups.max(1) - low) / levels, 1e-6)
    d, dmin = float(np.float16(steps.max() / 63)), float(np.float16(max(-low.min(), 1e-6) / 63))
    scales = np.clip(np.ceil(steps / d), 1, 63).astype(int)
    minima = np.clip(np.round(-low / dmin), 0, 63).astype(int)
    codes = np.round((groups + (dmin * minima)[:, None]) / (d * scales)[:, None])
    return Block(np.clip(codes, 0, levels).astype(int).ravel().tolist(), scales.tolist(), minima.tolist(), d, dmin)


def quantised(weights: Array, name: str) -> npt.NDArray[np.uint8]:
    """Returns the rows [n, in] of a matrix as blocks of Q4_K, Q5_K or Q6_K, [n, bytes]."""
    rows = [b"".join(_pack(part, name) for part in row.reshape(-1, 256)) for row in weights]
    return np.stack([np.frombuffer(row, np.uint8) for row in rows])


def _pack(weights: Array, name: str) -> bytes:
    if name == "Q4_K":
        return q4_k(rounded(weights, 15))
    if name == "Q5_K":
        return q5_k(rounded(weights, 31))
    groups = weights.reshape(16, 16).astype(float)
    steps = np.maximum(np.abs(groups).max(1) / 31, 1e-6)
    d = float(np.float16(steps.max() / 127))
    scales = np.clip(np.ceil(steps / d), 1, 127).astype(int)
    codes = np.clip(np.round(groups / (d * scales)[:, None]) + 32, 0, 63).astype(int)
    return q6_k(codes.ravel().tolist(), scales.tolist(), d)
