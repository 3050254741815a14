"""Writes the sparse model as a Hugging Face directory: merged experts, routers, configuration and tokenizer."""

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from octavo.model.decoder import DecoderLayer
from octavo.model.prepared.directory import COPIED
from octavo.model.prepared.source import DESCRIPTION_FILES, INDEX
from octavo.model.train.deltas import PARTS, Delta, merged
from octavo.model.train.dense import DenseModel, plain
from octavo.model.train.family import SparseFamily, Sparsity, sparse_config
from octavo.model.train.files import write_whole

NOT_COPIED = {"config.json", INDEX, *DESCRIPTION_FILES}


@dataclass(frozen=True, slots=True, eq=False)
class SparseCheckpoint:
    """A SparseCheckpoint is what a directory is made of."""

    source: Path  # the dense checkpoint
    family: SparseFamily
    model: DenseModel
    experts: Delta  # of experts 1 to X: gate.a [X, L, R, H] and so on
    routers: Tensor  # [L, 1 + X, H]
    top_k: int
    dtype: torch.dtype  # of all weights

    @property
    def tied(self) -> bool:
        """Returns whether the head is the embedding."""
        return self.model.decoder.head is self.model.decoder.embedding.table

    def config(self) -> dict[str, Any]:
        sparsity = Sparsity(self.routers.shape[1], self.top_k)
        written = {"tie_word_embeddings": self.tied, "torch_dtype": str(self.dtype).removeprefix("torch.")}
        return sparse_config(self.source, self.model.config, self.family, sparsity) | written

    def outside(self) -> dict[str, Tensor]:
        """Returns what belongs to no layer."""
        decoder = self.model.decoder
        tensors = {"model.embed_tokens.weight": decoder.embedding.table, "model.norm.weight": decoder.norm.weight}
        return tensors if self.tied else tensors | {"lm_head.weight": plain(decoder.head)}

    def layer(self, index: int) -> dict[str, Tensor]:
        """Returns all tensors of a layer, in float32."""
        gate, up = self.model.gate_up(index).chunk(2)
        matrices = dict(zip(PARTS, (gate, up, self.model.down(index)), strict=True))
        tensors = attention_tensors(self.model.decoder.layers[index], f"model.layers.{index}")
        tensors[self.family.router(index)] = self.routers[index]
        for number in range(self.routers.shape[1]):
            for place, (part, matrix) in enumerate(matrices.items()):
                tensors[self.family.expert(index, number, place)] = self._expert(index, number, part, matrix)
        return tensors

    def _expert(self, layer: int, number: int, part: str, matrix: Tensor) -> Tensor:
        """Returns a matrix of an expert; 0 is the original."""
        if number == 0:
            return matrix
        delta = {f"{part}.{factor}": self.experts[f"{part}.{factor}"][number - 1, layer] for factor in "ab"}
        return merged(matrix, delta, part)


def attention_tensors(layer: DecoderLayer, prefix: str) -> dict[str, Tensor]:
    """Returns the norms and the attention of a layer, under the names of transformers."""
    attention, own = layer.attention, f"{prefix}.self_attn"
    counts = [heads * attention.head_dim for heads in (attention.num_heads, *[attention.num_kv_heads] * 2)]
    tensors = {
        f"{prefix}.input_layernorm.weight": layer.input_norm.weight,
        f"{prefix}.post_attention_layernorm.weight": layer.post_norm.weight,
        f"{own}.o_proj.weight": plain(attention.o),
    }
    for name, rows in zip("qkv", plain(attention.qkv).split(counts), strict=True):
        tensors[f"{own}.{name}_proj.weight"] = rows
    if attention.qkv_bias is not None:
        for name, part in zip("qkv", attention.qkv_bias.split(counts), strict=True):
            tensors[f"{own}.{name}_proj.bias"] = part
    others = {"o_proj.bias": attention.o_bias}
    others |= {"q_norm.weight": None if attention.q_norm is None else attention.q_norm.weight}
    others |= {"k_norm.weight": None if attention.k_norm is None else attention.k_norm.weight}
    return tensors | {f"{own}.{name}": tensor for name, tensor in others.items() if tensor is not None}


def write_checkpoint(directory: Path, made: SparseCheckpoint) -> Iterator[int]:
    """Writes all files, and yields how many layers are done. A file that is there already is kept.

    Raises OSError; what is written so far then stays, and each file of it is whole.
    """
    directory.mkdir(parents=True, exist_ok=True)
    layers = made.model.config.num_hidden_layers
    names = [f"model-{number:05}-of-{layers + 1:05}.safetensors" for number in range(1, layers + 2)]
    weight_map: dict[str, str] = {}
    size = 0
    for number, name in enumerate(names):
        tensors = made.outside() if number == 0 else made.layer(number - 1)
        size += _write_shard(directory / name, tensors, made.dtype)
        weight_map |= dict.fromkeys(tensors, name)
        yield number
    _write_json(directory / INDEX, {"metadata": {"total_size": size}, "weight_map": weight_map})
    _write_json(directory / "config.json", made.config())
    copy_beside(made.source, directory)


def _write_shard(path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> int:
    """Writes a file unless it is there; returns the bytes of its tensors."""
    if not path.is_file():
        held = {name: tensor.to("cpu", dtype).contiguous().clone() for name, tensor in tensors.items()}
        write_whole(path, save(held, metadata={"format": "pt"}))
    return sum(tensor.numel() for tensor in tensors.values()) * dtype.itemsize


def _write_json(path: Path, value: Any) -> None:
    write_whole(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def copy_beside(source: Path, directory: Path) -> None:
    """Copies the tokenizer, the templates and the licences, and nothing that describes the old weights."""
    for pattern in COPIED:
        for path in sorted(source.glob(pattern)):
            if path.is_file() and path.name not in NOT_COPIED:
                target = directory / path.relative_to(source)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
