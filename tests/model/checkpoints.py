"""Loads tiny checkpoints, and rewrites them: stacked experts, shards, edited tensors."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from octavo.model.config import ModelConfig
from octavo.model.decoder import Decoder
from octavo.model.kernels.choice import select_backend
from octavo.model.loading.checkpoint import load_model
from octavo.model.loading.choice import precision_for
from octavo.model.weights.precision import Wanted

CPU = torch.device("cpu")
Tensors = dict[str, Tensor]


def load(directory: Path, dtype: str = "float32", quantization: str = "none") -> Decoder:
    config = ModelConfig.from_pretrained(directory)
    precision = precision_for(directory, Wanted(dtype, quantization), config, CPU, kernels=False)
    return load_model(directory, config, select_backend(config, CPU), precision)


def change(directory: Path, edit: Callable[[Tensors], None]) -> None:
    """Rewrites the weights of a single-file checkpoint."""
    tensors = load_file(directory / "model.safetensors")
    edit(tensors)
    save_file(tensors, directory / "model.safetensors")


def stack_experts(tensors: Tensors, layers: int = 2, experts: int = 4) -> None:
    """Stacks the experts of each projection in one tensor, under the names that transformers 5 gives them."""
    for n in range(layers):
        old, new = f"model.layers.{n}.block_sparse_moe", f"model.layers.{n}.mlp"

        def take(name: str, prefix: str = old) -> list[Tensor]:
            return [tensors.pop(f"{prefix}.experts.{expert}.{name}.weight") for expert in range(experts)]

        gate, down, up = take("w1"), take("w2"), take("w3")
        tensors[f"{new}.experts.gate_up_proj"] = torch.cat((torch.stack(gate), torch.stack(up)), dim=1)
        tensors[f"{new}.experts.down_proj"] = torch.stack(down)
        tensors[f"{new}.gate.weight"] = tensors.pop(f"{old}.gate.weight")


def shard(directory: Path, pieces: int = 3) -> None:
    """Splits model.safetensors over several files with an index."""
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    weight_map = {name: f"model-{n % pieces:05}-of-{pieces:05}.safetensors" for n, name in enumerate(sorted(tensors))}
    for file in set(weight_map.values()):
        save_file({name: tensors[name] for name in tensors if weight_map[name] == file}, directory / file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
