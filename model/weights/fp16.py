"""Holds matrices in float16 on a CPU, packed for FBGEMM's product, and decides whether float16 can hold a matrix."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

# Stored in float16, a matrix may lose this share of its norm. Rounding costs 3e-4; more means subnormal numbers.
TOLERANCE = 1e-3
CHECKED = 1 << 16  # elements at a time: the temporaries stay in the CPU's cache


@dataclass(frozen=True, slots=True, eq=False)
class Fp16Weight:
    """An Fp16Weight is a matrix in the tiles of FBGEMM's product with float32 activations; it needs x86."""

    bytes_per_weight: ClassVar[float] = 2.0

    packed: Any  # torch.ScriptObject, opaque
    shape: tuple[int, int]  # (out, in)

    @classmethod
    def pack(cls, dense: Tensor) -> "Fp16Weight":
        """Rounds dense [out, in] float32, which must fit (see fits_fp16). A billion weights take a thread seconds."""
        return cls(torch.ops.quantized.linear_prepack_fp16(dense, None), (dense.shape[0], dense.shape[1]))

    @property
    def nbytes(self) -> int:
        """Returns the bytes it takes: a tile is 16 outputs by 512 inputs, and the last ones are held whole."""
        out, inputs = self.shape
        return 2 * (out + -out % 16) * (inputs + -inputs % 512)

    def dense(self) -> Tensor:
        """Returns the rounded weights as float32 [out, in]."""
        return torch.ops.quantized.linear_unpack_fp16(self.packed)[0].float()


def fits_fp16(dense: Tensor) -> bool:
    """Returns whether float16 holds dense (contiguous, float32, finite) up to TOLERANCE of its norm."""
    low, high = torch.aminmax(dense)
    if max(-low.item(), high.item()) > torch.finfo(torch.float16).max:
        return False
    total = torch.linalg.vector_norm(dense).item() ** 2
    allowed = TOLERANCE**2 * total
    # Rounding costs a normal number at most 2^-11 of itself and a subnormal one 2^-25: this settles most matrices.
    if 2.0**-22 * total + 2.0**-50 * dense.numel() <= allowed:
        return True
    parts = dense.view(-1).split(CHECKED)
    return sum((part - part.half()).square().sum().item() for part in parts) <= allowed
