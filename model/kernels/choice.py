"""The four seams where fast code plugs in, and the one place that chooses what is behind them."""

from dataclasses import replace
from importlib.util import find_spec

import torch

from octavo.model.config import ModelConfig, ModelError
from octavo.model.kernels.cpu.library import library
from octavo.model.kernels.cpu.ops import CpuOps
from octavo.model.ops.invariant import INVARIANT
from octavo.model.ops.seams import TORCH, Ops

OLDEST = (8, 0)  # compute capability: on older GPUs, which have no product of bfloat16, torch's operations run


def select_ops(config: ModelConfig, device: torch.device, batch_invariant: bool = False) -> Ops:
    """Chooses once per model. Raises ModelError for a device that nothing here was tried on.

    batch_invariant: a row's bits must not depend on the rest of the batch, whatever that costs.
    """
    plain = INVARIANT if batch_invariant else TORCH
    match device.type:
        case "cpu" if (kernels := library()) is not None:
            return CpuOps(kernels, plain).ops()
        case "cuda" if has_triton(device):
            from octavo.model.kernels.gpu.ops import GpuOps
            from octavo.model.kernels.gpu.sampling import draw  # triton loads here, which only a GPU needs

            return replace(plain, draw=draw) if batch_invariant else GpuOps.on(config, device).ops()
        case "cpu" | "cuda":
            return plain
        case other:
            raise ModelError(f"There are no operations for the device {other!r}: use cpu or cuda.")


def has_triton(device: torch.device) -> bool:
    """Whether the kernels can be compiled for a GPU; torch brings triton along where it was built for CUDA on Linux."""
    return find_spec("triton") is not None and torch.cuda.get_device_capability(device) >= OLDEST


def try_out(device: torch.device) -> None:
    """Lets a GPU compute a little: what cannot work is said before minutes of loading. Raises ModelError."""
    if device.type != "cuda":
        return
    try:
        torch.ones(1, device=device).sum().item()
    except RuntimeError as error:
        reason = str(error).strip().split("\n")[0].rstrip(".")
        raise ModelError(
            f"torch cannot compute on this GPU ({reason}): see that no other process fills or holds it and that torch "
            f"{torch.__version__} was built for it, or serve with --device cpu."
        ) from None
    if has_triton(device):
        from octavo.model.kernels.gpu.trial import compile_one  # triton loads here

        compile_one(device)
