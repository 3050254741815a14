"""Weight types: what a matrix is held as, and what one is held as on which device."""

import platform
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from model.config import DTYPES, ModelError

# What a weight may lose when it is stored in float16: rounding costs 3e-4, more means subnormal numbers.
FP16_TOLERANCE = 1e-3
CHECKED = 1 << 16  # elements that are checked at a time: the temporaries stay in the CPU's cache


@dataclass(frozen=True, slots=True, eq=False)
class Fp16Weight:
    """A matrix in float16, in the tiles of FBGEMM's mixed-precision product with float32 activations; x86 only."""

    packed: Any  # torch.ScriptObject, opaque
    shape: tuple[int, int]  # (out, in)

    @classmethod
    def pack(cls, dense: Tensor) -> "Fp16Weight":
        """Rounds dense [out, in] float32, which fits_fp16; seconds per billion weights, on one thread."""
        return cls(torch.ops.quantized.linear_prepack_fp16(dense, None), (dense.shape[0], dense.shape[1]))

    @property
    def nbytes(self) -> int:
        """Memory it takes: the tiles are 16 outputs by 512 inputs, and the last ones are held whole."""
        out, inputs = self.shape
        return 2 * _round_up(out, 16) * _round_up(inputs, 512)

    def dense(self) -> Tensor:
        """The rounded weights as float32 [out, in]."""
        return torch.ops.quantized.linear_unpack_fp16(self.packed)[0].float()


def _round_up(size: int, step: int) -> int:
    return -(-size // step) * step


Weight = Tensor | Fp16Weight


def fits_fp16(dense: Tensor) -> bool:
    """Whether float16 holds dense (contiguous, float32, finite) up to FP16_TOLERANCE of its norm."""
    low, high = torch.aminmax(dense)
    if max(-low.item(), high.item()) > torch.finfo(torch.float16).max:
        return False
    lost = total = 0.0
    for part in dense.view(-1).split(CHECKED):
        total += part.square().sum().item()
        lost += (part - part.half()).square().sum().item()
    return lost <= FP16_TOLERANCE**2 * total


@dataclass(frozen=True, slots=True)
class Precision:
    """How a model is held and computed."""

    weights: torch.dtype  # of the matrices
    activations: torch.dtype  # and of the KV cache
    packed: bool = False  # matrices are Fp16Weight


def choose_precision(dtype: str, checkpoint: str | None, device: torch.device) -> Precision:
    """What `--dtype` means on a device, for a checkpoint whose config names a dtype (or not). Raises ModelError."""
    if dtype not in ("auto", *DTYPES):
        raise ModelError(f"The dtype {dtype!r} is unknown; use auto, {', '.join(DTYPES)}.")
    if dtype == "auto":
        dtype = _fast_on_cpu() if device.type == "cpu" else _fast_on_cuda(checkpoint)
    if dtype == "float16" and device.type == "cpu":
        if not fp16_works():
            raise ModelError("This CPU has no float16 product; use --dtype auto or float32.")
        return Precision(torch.float16, torch.float32, packed=True)
    exact: torch.dtype = getattr(torch, dtype)
    return Precision(exact, exact)


def _fast_on_cpu() -> str:
    # Measured: FBGEMM's float16 decodes twice as fast as native bfloat16 even where the CPU has instructions for it.
    if fp16_works():
        return "float16"
    return "bfloat16" if _native_bf16() else "float32"


def _fast_on_cuda(checkpoint: str | None) -> str:
    # The checkpoint's own 16 bits; bfloat16 for a float32 one, because it has float32's range.
    if checkpoint == "float16" or not torch.cuda.is_bf16_supported(including_emulation=False):
        return "float16"
    return "bfloat16"


def fp16_works() -> bool:
    """Whether torch was built with FBGEMM and runs on a CPU that it supports: tried, not guessed."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    try:
        packed = Fp16Weight.pack(torch.ones(16, 16)).packed
        return bool(torch.ops.quantized.linear_dynamic_fp16(torch.ones(1, 16), packed).eq(16).all())
    except RuntimeError:
        return False


def _native_bf16() -> bool:
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "arm_bf16", "bf16"))
