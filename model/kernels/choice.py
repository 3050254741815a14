"""Chooses the code that computes a model, in one place and before the model is loaded."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec

import torch
from torch import Tensor

from octavo.model.config import ModelConfig, ModelError
from octavo.model.decoder import DecoderLayer, FusedLayers
from octavo.model.kernels.cpu.decoder import CpuDecoder
from octavo.model.kernels.cpu.library import library
from octavo.model.kernels.cpu.ops import CpuOps
from octavo.model.layers import RMSNorm, RowNorm
from octavo.model.ops.invariant import OPS, Invariance
from octavo.model.ops.seams import Ops
from octavo.model.weights.tiles import TiledWeight

OLDEST = (8, 0)  # Older compute capabilities have no product of bfloat16: torch's operations run there.

Fuse = Callable[[tuple[DecoderLayer, ...]], FusedLayers | None]
Fill = Callable[[TiledWeight, Tensor, int], None]  # does what TiledWeight.fill does


def unfused(layers: tuple[DecoderLayer, ...]) -> FusedLayers | None:
    """Fuses nothing: the layers run one after the other."""
    return None


@dataclass(frozen=True, slots=True)
class Backend:
    """A Backend is the code that computes a model on its device; it is chosen before the model is loaded."""

    device: torch.device
    ops: Ops
    fuse: Fuse = unfused
    norm: type[RMSNorm] = RMSNorm
    fill: Fill = TiledWeight.fill  # quantises rows as they are read


def select_backend(config: ModelConfig, device: torch.device, invariance: Invariance = Invariance.NONE) -> Backend:
    """Chooses the code for a model. Raises ModelError for a device that nothing here was tried on.

    With Invariance.FULL, no bit of a row's result depends on the rest of the batch.
    """
    plain = OPS[invariance]
    match device.type:
        case "cpu" if (kernels := library()) is not None:  # In these kernels, no row depends on another.
            ops = CpuOps(kernels, plain).ops()
            return Backend(device, ops, lambda layers: CpuDecoder.of(layers, kernels), fill=kernels.quantise)
        case "cpu":
            return Backend(device, plain)
        case "cuda" if has_triton(device):
            return _select_triton(config, device, invariance)
        case "cuda":
            return Backend(device, plain, norm=RowNorm if invariance is Invariance.FULL else RMSNorm)
        case other:
            raise ModelError(f"There are no operations for the device {other!r}: use cpu or cuda.")


def _select_triton(config: ModelConfig, device: torch.device, invariance: Invariance) -> Backend:
    """Chooses for a GPU that the kernels can be compiled for; how those of the layers round depends on the batch."""
    from octavo.model.kernels.gpu.decoder import GpuDecoder  # triton loads here, which only a GPU needs
    from octavo.model.kernels.gpu.ops import GpuOps
    from octavo.model.kernels.gpu.sampling import draw

    if invariance is Invariance.FULL:
        return Backend(device, replace(OPS[invariance], draw=draw), norm=RowNorm)
    gpu = GpuOps.on(config, device)
    return Backend(device, gpu.ops(), lambda layers: GpuDecoder.of(layers, config.rms_norm_eps, gpu.arch))


def has_triton(device: torch.device) -> bool:
    """Returns whether the kernels can be compiled for a GPU; torch built for CUDA on Linux brings triton along."""
    return find_spec("triton") is not None and torch.cuda.get_device_capability(device) >= OLDEST


def try_out(device: torch.device) -> None:
    """Lets a GPU compute a little before minutes of loading. Raises ModelError if it cannot."""
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
