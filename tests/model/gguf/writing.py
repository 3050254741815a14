"""Writes GGUF files with the package gguf: of tiny checkpoints, and of vocabularies."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType as Type
from safetensors.torch import load_file
from tokenizers.pre_tokenizers import ByteLevel

from tests.model.gguf.packing import quantised

Types = Callable[[str], str]  # from the name of a tensor in the file to a type's
Array = npt.NDArray[Any]

LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "block_sparse_moe.gate": "ffn_gate_inp",
    "mlp.gate": "ffn_gate_inp",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
EXPERT = {"w1": "gate", "w3": "up", "w2": "down", "gate_proj": "gate", "up_proj": "up", "down_proj": "down"}
SIZES = {
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "max_position_embeddings": "context_length",
    "intermediate_size": "feed_forward_length",
    "num_local_experts": "expert_count",
    "num_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count",
    "moe_intermediate_size": "expert_feed_forward_length",
    "head_dim": "attention.key_length",
}
SPECIAL = ("<unk>", "<s>", "</s>")
TEMPLATE = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"


def byte_vocabulary() -> dict[str, Any]:
    """Returns metadata of a vocabulary of 3 special tokens, all bytes, and one merge."""
    tokens = [*SPECIAL, *sorted(ByteLevel.alphabet()), "ab"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3, 3, 3] + [1] * (len(tokens) - 3),
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.chat_template": TEMPLATE,
    }


VOCABULARY = len(byte_vocabulary()["tokenizer.ggml.tokens"])


def metadata_of(config: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Returns what a file says about a model of this config.json."""
    sparse = config["model_type"] in ("mixtral", "qwen3_moe")
    sizes = {name: key for name, key in SIZES.items() if sparse or "expert" not in key}
    found = {f"{prefix}.{key}": config[name] for name, key in sizes.items() if config.get(name) is not None}
    theta = config.get("rope_theta") or config["rope_parameters"]["rope_theta"]
    return found | {
        f"{prefix}.attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        f"{prefix}.rope.freq_base": float(theta),
    }


def write(path: Path, arch: str, metadata: Mapping[str, Any], tensors: Mapping[str, Array], types: Types) -> Path:
    """Writes a file; None among the metadata leaves something out."""
    writer = gguf.GGUFWriter(path, arch)
    for key, value in metadata.items():
        add_value(writer, key, value)
    for name, array in tensors.items():
        kind = types(name) if array.ndim > 1 and "ffn_gate_inp" not in name else "F32"
        writer.add_tensor(name, stored(array.astype(np.float32), kind), raw_dtype=Type[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_value(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    match value:
        case None:
            pass
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case str():
            writer.add_string(key, value)
        case _:
            writer.add_array(key, value)


def stored(array: Array, kind: str) -> Array:
    """Returns an array as a type has it: bytes, except for F32 and F16."""
    if not kind.endswith("_K"):
        return gguf.quantize(array, Type[kind])
    rows = quantised(array.reshape(-1, array.shape[-1]), kind)
    return rows.reshape(*array.shape[:-1], -1)


def written(directory: Path, types: Types, merged: bool = True, **metadata: Any) -> Path:
    """Writes a GGUF file beside a checkpoint, of the same weights; `metadata` changes what it says."""
    config = json.loads((directory / "config.json").read_text())
    arch = {"mixtral": "llama", "mistral": "llama", "qwen3_moe": "qwen3moe"}.get(
        config["model_type"], config["model_type"]
    )
    given = byte_vocabulary() | metadata_of(config, arch) | metadata
    arrays = {name: tensor.float().numpy() for name, tensor in load_file(directory / "model.safetensors").items()}
    return write(directory / "tiny.gguf", arch, given, dict(renamed(arrays, config, merged)), types)


def renamed(arrays: Mapping[str, Array], config: Mapping[str, Any], merged: bool) -> Iterator[tuple[str, Array]]:
    """Yields all tensors under the names of a GGUF file, with q and k in pairs if it is Llama's."""
    pairs = config["model_type"] in ("mixtral", "mistral", "llama")
    experts: dict[str, dict[int, Array]] = {}
    for name, array in arrays.items():
        stem, _, suffix = name.rpartition(".")
        if stem in OUTSIDE:
            yield f"{OUTSIDE[stem]}.{suffix}", array
            continue
        layer, _, role = stem.removeprefix("model.layers.").partition(".")
        if ".experts." in stem:
            _, number, projection = role.rsplit(".", 2)
            experts.setdefault(f"blk.{layer}.ffn_{EXPERT[projection]}", {})[int(number)] = array
            continue
        heads = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}.get(LAYER[role])
        yield f"blk.{layer}.{LAYER[role]}.{suffix}", paired(array, config[heads]) if heads and pairs else array
    for prefix, found in experts.items():
        if merged:
            yield f"{prefix}_exps.weight", np.stack([found[n] for n in range(len(found))])
        else:
            yield from ((f"{prefix}.{n}.weight", array) for n, array in found.items())


def paired(rows: Array, heads: int) -> Array:
    """Puts row n + D / 2 of each head behind row n, one row after the other."""
    length = len(rows) // heads
    order = [h * length + n + part * length // 2 for h in range(heads) for n in range(length // 2) for part in (0, 1)]
    return rows[order]
