"""Makes tiny configurations, and random checkpoints of them, sparse or dense."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from octavo.model.config import ModelConfig

CONFIG: dict[str, Any] = {
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "vocab_size": 256,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": None,
    "hidden_act": "silu",
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e4,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "float32",
}
TINY_CONFIG = ModelConfig(  # for tests without a checkpoint, which replace the values that matter to them
    vocab_size=100,
    hidden_size=8,
    intermediate_size=8,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=4,
    num_experts=2,
    num_experts_per_tok=1,
)
LLAMA3_ROPE = {  # Llama 3.1's but shorter, so that the eight frequencies of a tiny head lie on both sides of the bounds
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def write_tiny_checkpoint(directory: Path, *, seed: int = 0, sharp: float = 1.0, **overrides: Any) -> Path:
    """Writes config.json and model.safetensors, each expert by itself. The overrides are keys of config.json.

    The model_type "mistral" or "llama" makes a dense checkpoint, without routers and with one feed-forward a layer.

    `sharp` multiplies routers and head: larger values make the choice of experts and of the next token clearer.
    """
    config = CONFIG | overrides
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    dtype = getattr(torch, config["torch_dtype"])
    tensors = {name: tensor.to(dtype).contiguous() for name, tensor in tiny_tensors(config, seed, sharp).items()}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def tiny_tensors(config: dict[str, Any], seed: int = 0, sharp: float = 1.0) -> dict[str, Tensor]:
    """Returns the weights of a checkpoint in float32, scaled so that activations keep their size in each layer."""
    generator = torch.Generator().manual_seed(seed)

    def matrix(rows: int, columns: int, gain: float = 1.0) -> Tensor:
        return torch.randn(rows, columns, generator=generator) * gain / columns**0.5

    def norm() -> Tensor:
        return 1 + 0.1 * torch.randn(hidden, generator=generator)

    hidden, wide, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    head_dim = config["head_dim"] or hidden // config["num_attention_heads"]
    queries, keys = config["num_attention_heads"] * head_dim, config["num_key_value_heads"] * head_dim
    tensors = {
        "model.embed_tokens.weight": torch.randn(vocab, hidden, generator=generator),
        "model.norm.weight": norm(),
    }
    if not config["tie_word_embeddings"]:
        tensors["lm_head.weight"] = matrix(vocab, hidden, sharp)
    for n in range(config["num_hidden_layers"]):
        layer = f"model.layers.{n}"
        tensors[f"{layer}.input_layernorm.weight"] = norm()
        tensors[f"{layer}.post_attention_layernorm.weight"] = norm()
        for name, shape in {
            "q": (queries, hidden),
            "k": (keys, hidden),
            "v": (keys, hidden),
            "o": (hidden, queries),
        }.items():
            tensors[f"{layer}.self_attn.{name}_proj.weight"] = matrix(*shape)
        if config["model_type"] != "mixtral":
            tensors[f"{layer}.mlp.gate_proj.weight"] = matrix(wide, hidden)
            tensors[f"{layer}.mlp.up_proj.weight"] = matrix(wide, hidden)
            tensors[f"{layer}.mlp.down_proj.weight"] = matrix(hidden, wide, 2.0)
            continue
        tensors[f"{layer}.block_sparse_moe.gate.weight"] = matrix(config["num_local_experts"], hidden, sharp)
        for expert in range(config["num_local_experts"]):
            prefix = f"{layer}.block_sparse_moe.experts.{expert}"
            tensors[f"{prefix}.w1.weight"] = matrix(wide, hidden)
            tensors[f"{prefix}.w3.weight"] = matrix(wide, hidden)
            tensors[f"{prefix}.w2.weight"] = matrix(hidden, wide, 2.0)
    return tensors
