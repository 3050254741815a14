"""Unpacks codes of 4 and 8 bits from bytes, and from words of 32 bits, whose first code is in the lowest bits."""

from collections.abc import Iterator

import torch
from torch import Tensor

AT_ONCE = 1 << 22  # codes that are unpacked at a time, so that a large matrix does not take many times its size


def low_half_first(pairs: Tensor) -> Tensor:
    """Takes bytes [..., n] apart into their halves, [..., 2n]."""
    return torch.stack((pairs & 15, pairs >> 4), dim=-1).flatten(-2)


def high_half_first(pairs: Tensor) -> Tensor:
    """Takes bytes [..., n] apart into their halves, [..., 2n]."""
    return torch.stack((pairs >> 4, pairs & 15), dim=-1).flatten(-2)


def unpacked_right(words: Tensor, bits: int) -> Tensor:
    """Unpacks the codes that lie side by side: [rows, words] int32 -> [rows, words * 32 / bits] uint8."""
    codes = words.contiguous().view(torch.uint8)  # The lowest byte comes first.
    return codes if bits == 8 else low_half_first(codes)


def unpacked_down(words: Tensor, bits: int, order: Tensor | None) -> Tensor:
    """Unpacks the codes that lie one below the other, and transposes: [words, out] int32 -> [out, in] uint8.

    The codes of each output are put in an order [in] int64, if there is one.
    """
    out = words.shape[1]
    codes = torch.empty((out, words.shape[0] * (32 // bits)), dtype=torch.uint8)
    for rows in pieces(out, codes.shape[1]):
        piece = unpacked_right(words[:, rows].T, bits)
        codes[rows] = piece if order is None else piece[:, order]
    return codes


def unpacked_rows(words: Tensor, bits: int, inputs: int, order: Tensor | None) -> Tensor:
    """Unpacks the codes that lie side by side: [out, words] int32 -> [out, in] uint8.

    The codes of each output are put in an order [in] int64, if there is one.
    """
    codes = torch.empty((len(words), inputs), dtype=torch.uint8)
    for rows in pieces(len(words), inputs):
        piece = unpacked_right(words[rows], bits)[:, :inputs]
        codes[rows] = piece if order is None else piece[:, order]
    return codes


def pieces(rows: int, length: int) -> Iterator[slice]:
    """Yields slices that cover so many rows, each with about AT_ONCE codes."""
    step = max(1, AT_ONCE // length)
    yield from (slice(first, min(first + step, rows)) for first in range(0, rows, step))
