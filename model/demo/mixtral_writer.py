"""Writes a dense Llama checkpoint as a Hugging Face Mixtral directory whose experts are copies of one feed-forward."""

import json
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from octavo.model.demo.dense_gguf import DenseConfig, Float32, GGUFSource, Vocabulary
from octavo.model.demo.pinned import ReportStage

EXPERTS = 8
EXPERTS_PER_TOKEN = 2
EXPERT_NAMES = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}
ROUTER_STD = 0.02  # It is Mixtral's initializer_range.
LAYERS_PER_SHARD = 5


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """A PlannedTensor is one dense tensor and every name that it is stored under."""

    names: tuple[str, ...]
    shape: tuple[int, ...]
    load: Callable[[], Float32]

    @property
    def nbytes(self) -> int:
        """Returns the bytes that all copies take in bf16."""
        return len(self.names) * 2 * int(np.prod(self.shape))


@dataclass(frozen=True, slots=True)
class Shard:
    """A Shard is one file of the checkpoint."""

    file: str
    tensors: tuple[PlannedTensor, ...]

    @property
    def header(self) -> bytes:
        """Returns the head of a safetensors file: the JSON's length in 8 bytes, then the JSON, padded to 8 bytes."""
        entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for tensor in self.tensors:
            size = tensor.nbytes // len(tensor.names)
            for name in tensor.names:
                entries[name] = {"dtype": "BF16", "shape": tensor.shape, "data_offsets": [offset, offset + size]}
                offset += size
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return struct.pack("<Q", len(text)) + text

    @property
    def nbytes(self) -> int:
        """Returns the bytes of the whole file."""
        return len(self.header) + sum(tensor.nbytes for tensor in self.tensors)


def plan_shards(source: GGUFSource) -> tuple[Shard, ...]:
    """Decides which tensor goes into which file; loads nothing. The first shard holds what belongs to no layer."""
    layers = source.config.layers
    outside = [_copy(source, name) for name in source.names if not name.startswith("model.layers.")]
    files = [outside] + [
        [tensor for layer in range(first, min(first + LAYERS_PER_SHARD, layers)) for tensor in _layer(source, layer)]
        for first in range(0, layers, LAYERS_PER_SHARD)
    ]
    return tuple(
        Shard(f"model-{number:05}-of-{len(files):05}.safetensors", tuple(tensors))
        for number, tensors in enumerate(files, start=1)
    )


def write_shards(directory: Path, shards: tuple[Shard, ...], report: ReportStage) -> None:
    """Writes every shard that `directory` does not hold yet, with one tensor in memory at a time.

    A file under its final name is whole, since it gets that name only after it has reached the disk.
    """
    done, total = 0, sum(shard.nbytes for shard in shards)
    report("writing weights", done, total)
    for shard in shards:
        path = directory / shard.file
        if path.is_file() and path.stat().st_size == shard.nbytes:
            done += shard.nbytes
            report("writing weights", done, total)
            continue
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            for chunk in _chunks(shard):
                file.write(chunk)
                done += len(chunk)
                report("writing weights", done, total)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)


def write_files(directory: Path, source: GGUFSource, shards: tuple[Shard, ...]) -> None:
    """Writes the files beside the weights: index, configuration, tokenizer and chat template."""
    vocabulary = source.vocabulary()
    tied = "lm_head.weight" not in source.names
    documents = {
        "model.safetensors.index.json": index(shards),
        "config.json": mixtral_config(source.config, vocabulary, tied),
        "generation_config.json": generation_config(vocabulary),
        "tokenizer_config.json": tokenizer_config(source.config, vocabulary),
    }
    for file, document in documents.items():
        (directory / file).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    (directory / "tokenizer.json").write_text(tokenizer(vocabulary).to_str(), encoding="utf-8")
    (directory / "chat_template.jinja").write_text(vocabulary.chat_template, encoding="utf-8")


def index(shards: tuple[Shard, ...]) -> dict[str, Any]:
    tensors = [(shard.file, tensor) for shard in shards for tensor in shard.tensors]
    return {
        "metadata": {"total_size": sum(tensor.nbytes for _, tensor in tensors)},
        "weight_map": {name: file for file, tensor in tensors for name in tensor.names},
    }


def mixtral_config(dense: DenseConfig, vocabulary: Vocabulary, tied: bool) -> dict[str, Any]:
    return {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "vocab_size": dense.vocabulary,
        "hidden_size": dense.hidden,
        "intermediate_size": dense.ffn,
        "num_hidden_layers": dense.layers,
        "num_attention_heads": dense.heads,
        "num_key_value_heads": dense.kv_heads,
        "head_dim": dense.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": dense.context,
        "rms_norm_eps": dense.rms_norm_eps,
        "rope_theta": dense.rope_theta,
        "sliding_window": None,
        "tie_word_embeddings": tied,
        "num_local_experts": EXPERTS,
        "num_experts_per_tok": EXPERTS_PER_TOKEN,
        "initializer_range": ROUTER_STD,
        "bos_token_id": vocabulary.bos_id,
        "eos_token_id": vocabulary.eos_id,
        "pad_token_id": vocabulary.pad_id,
        "torch_dtype": "bfloat16",
    }


def generation_config(vocabulary: Vocabulary) -> dict[str, Any]:
    """Returns the sampling defaults. The temperature is low because so small a model wanders at the usual 1."""
    return {
        "bos_token_id": vocabulary.bos_id,
        "eos_token_id": vocabulary.eos_id,
        "pad_token_id": vocabulary.pad_id,
        "do_sample": True,
        "temperature": 0.2,
        "top_p": 0.9,
    }


def tokenizer_config(dense: DenseConfig, vocabulary: Vocabulary) -> dict[str, Any]:
    """Names the plain class, since transformers' GPT2Tokenizer would silently drop the splitting of digits."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": vocabulary.tokens[vocabulary.bos_id],
        "eos_token": vocabulary.tokens[vocabulary.eos_id],
        "unk_token": vocabulary.tokens[vocabulary.unk_id],
        "pad_token": vocabulary.tokens[vocabulary.pad_id],
        "model_max_length": dense.context,
        "clean_up_tokenization_spaces": False,
    }


def tokenizer(vocabulary: Vocabulary) -> Tokenizer:
    """Returns a byte-level BPE that splits numbers into digits, which GGUF calls the pre-tokenizer "smollm"."""
    ids = {token: number for number, token in enumerate(vocabulary.tokens)}
    result = Tokenizer(models.BPE(ids, list(vocabulary.merges)))
    result.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    result.decoder = decoders.ByteLevel()
    result.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in vocabulary.special])
    return result


def router(layer: int, hidden: int) -> Float32:
    """Returns seeded noise. The experts are identical, so every choice is right; the noise spreads tokens over them.

    It is made of uniform numbers, whose stream numpy keeps from version to version. A sum of 12 is nearly normal.
    """
    uniform = np.random.Generator(np.random.PCG64(layer)).random((12, EXPERTS, hidden))
    return ((uniform.sum(axis=0) - 6.0) * ROUTER_STD).astype(np.float32)  # [E, hidden]


def bfloat16(values: Float32) -> npt.NDArray[np.uint16]:
    """Returns the upper half of each finite fp32 number, rounded to nearest, ties to even."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = bits >> 16
    rounded &= 1
    rounded += bits
    rounded += 0x7FFF
    rounded >>= 16
    return rounded.astype("<u2")


def _layer(source: GGUFSource, layer: int) -> Iterator[PlannedTensor]:
    prefix = f"model.layers.{layer}."
    moe = f"{prefix}block_sparse_moe"
    for name in source.names:
        if not name.startswith(prefix):
            continue
        if not name.startswith(f"{prefix}mlp."):
            yield _copy(source, name)
            continue
        projection = EXPERT_NAMES[name.removeprefix(f"{prefix}mlp.").removesuffix(".weight")]
        yield _copy(source, name, tuple(f"{moe}.experts.{expert}.{projection}.weight" for expert in range(EXPERTS)))
    hidden = source.config.hidden
    yield PlannedTensor((f"{moe}.gate.weight",), (EXPERTS, hidden), lambda: router(layer, hidden))


def _copy(source: GGUFSource, name: str, names: tuple[str, ...] = ()) -> PlannedTensor:
    return PlannedTensor(names or (name,), source.shape(name), lambda: source.tensor(name))


def _chunks(shard: Shard) -> Iterator[bytes]:
    yield shard.header
    for tensor in shard.tensors:
        data = bfloat16(tensor.load()).tobytes()
        for _ in tensor.names:
            yield data
