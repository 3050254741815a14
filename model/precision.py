"""Precision: what a model's matrices are held as and what it computes in, for what was asked on which device."""

import platform
from dataclasses import dataclass

import torch

from model.config import DTYPES, ModelError
from model.quantization import Fp16Weight


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
