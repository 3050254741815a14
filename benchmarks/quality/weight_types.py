"""Makes a model in each weight type, Octavo's own and those of its peers."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.quality.checkpoint_formats import CHECKPOINT_FORMATS
from benchmarks.quality.peer_formats import PEER_FORMATS, Programs, round_as, shuffled
from octavo.model.config import ModelConfig
from octavo.model.decoder import Decoder
from octavo.model.kernels.choice import select_backend
from octavo.model.kernels.cpu.library import library
from octavo.model.loading.checkpoint import load_model
from octavo.model.weights.kinds import Kind
from octavo.model.weights.memory import zeros_on
from octavo.model.weights.precision import Precision, Wanted, choose_precision
from octavo.model.weights.row_major import Fp8RowMajor, Int4RowMajor, Int8GroupedRowMajor, Int8RowMajor, RowMajorWeight
from octavo.model.weights.tiles import TiledWeight, TileLayout

CPU = torch.device("cpu")
SERVED = {"fp16": ("float16", "none"), "int8": ("auto", "int8"), "int4": ("auto", "int4")}  # -> flags of octavo serve
REGROUPED = {"int8-regrouped": "int8", "int4-regrouped": "int4"}  # -> a --quantization
GPU_KINDS: dict[str, type[RowMajorWeight]] = {
    "gpu-int8": Int8RowMajor,
    "gpu-int8-groups": Int8GroupedRowMajor,
    "gpu-fp8": Fp8RowMajor,
    "gpu-int4": Int4RowMajor,
}
OWN = (*REGROUPED, *SERVED, *GPU_KINDS)  # names of Octavo's own weight types, in the order of the table


@dataclass(frozen=True, slots=True)
class Rounded:
    """A Rounded is a model in a weight type."""

    model: Decoder
    bytes_per_weight: float  # of the experts; of all matrices, if a peer's format is for all


def regroup(model: Decoder, precision: Precision) -> float:
    """Rounds the experts of a float32 model in place, in groups of inputs that are not neighbours.

    The default model's experts were in 4 bits before, in the same groups of 32 inputs, so int4 finds their steps
    again. For groups drawn at random it must make new grids, as it must for models that come in 16 bits. Returns the
    bytes of a weight.
    """
    size = count = 0.0
    for n, layer in enumerate(model.layers):
        down = precision.down(n, len(model.layers))
        held = ((layer.moe.experts.gate_up, precision.experts), (layer.moe.experts.down, down))
        for dense, kind in ((matrix, kind) for matrices, kind in held for matrix in matrices):
            assert isinstance(kind, Kind) and isinstance(dense, Tensor)
            _regroup(dense, kind)
            size, count = size + kind.bytes_per_weight * dense.numel(), count + dense.numel()
    return size / count


def _regroup(dense: Tensor, kind: Kind) -> None:
    kernels, order = library(), shuffled(dense.shape[1])
    fill = TiledWeight.fill if kernels is None else kernels.quantise
    weight = TiledWeight.empty(TileLayout(kind, (dense.shape[0], dense.shape[1])), zeros_on(CPU))
    fill(weight, dense[:, order].contiguous(), 0)
    dense[:, order] = weight.dense()


def round_experts(model: Decoder, kind: type[RowMajorWeight]) -> float:
    """Rounds the experts of a float32 model in place to what a GPU holds; returns the bytes of a weight.

    The arithmetic stays in float32.
    """
    for dense in experts(model):
        dense.copy_(kind.pack(dense).dense())
    return kind.bytes_per_weight


def experts(model: Decoder) -> Iterator[Tensor]:
    """Yields the matrices of all experts of a float32 model."""
    for layer in model.layers:
        for dense in (*layer.moe.experts.gate_up, *layer.moe.experts.down):
            assert isinstance(dense, Tensor)
            yield dense


def load_as(directory: Path, dtype: str, quantization: str) -> Decoder:
    """Loads the model on the CPU with these flags of `octavo serve`."""
    config = ModelConfig.from_pretrained(directory)
    precision = choose_precision(Wanted(dtype, quantization), config.dtype, CPU, library() is not None)
    return load_model(directory, config, select_backend(config, CPU), precision)


def make(directory: Path, name: str, programs: Programs) -> Rounded:
    """Loads the model in the weight type of that name; `programs` are those of the peers."""
    if name in SERVED:
        model = load_as(directory, *SERVED[name])
        held = (weight for layer in model.layers for weight in (*layer.moe.experts.gate_up, *layer.moe.experts.down))
        return Rounded(model, sum(weight.nbytes for weight in held) / model.config.num_expert_parameters())
    model = load_as(directory, "float32", "none")
    if name in REGROUPED:
        precision = choose_precision(Wanted("auto", REGROUPED[name]), None, CPU, kernels=True)
        return Rounded(model, regroup(model, precision))
    if name in GPU_KINDS:
        return Rounded(model, round_experts(model, GPU_KINDS[name]))
    if name in CHECKPOINT_FORMATS:
        grid = CHECKPOINT_FORMATS[name]
        for dense in experts(model):
            grid.round(dense)
        return Rounded(model, grid.bytes_per_weight)
    return Rounded(model, round_as(model, PEER_FORMATS[name], programs))
