"""Knows the matrices of Mixtral 8x7B, with any number of layers."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

MIXTRAL: dict[str, Any] = {
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "float16",
}
HIDDEN, WIDE, EXPERTS = MIXTRAL["hidden_size"], MIXTRAL["intermediate_size"], MIXTRAL["num_local_experts"]
KEYS = MIXTRAL["num_key_value_heads"] * MIXTRAL["head_dim"]
TABLE = (MIXTRAL["vocab_size"], HIDDEN)
LAYER_BYTES = 0.52 * (2 * HIDDEN * (HIDDEN + KEYS) + EXPERTS * 3 * HIDDEN * WIDE)  # with 4 bits in groups of 128


@dataclass(frozen=True, slots=True)
class Linear:
    """A Linear is a matrix that checkpoints quantise."""

    name: str
    out: int
    inputs: int


def config(layers: int) -> dict[str, Any]:
    """Returns the config.json of the model with so many layers."""
    return MIXTRAL | {"num_hidden_layers": layers}


def attention(layer: int) -> Iterator[Linear]:
    """Yields the matrices of a layer's attention."""
    prefix = f"model.layers.{layer}.self_attn"
    for name, out in (("q", HIDDEN), ("k", KEYS), ("v", KEYS), ("o", HIDDEN)):
        yield Linear(f"{prefix}.{name}_proj", out, HIDDEN)


def experts(layer: int) -> Iterator[Linear]:
    """Yields the matrices of a layer's experts."""
    for expert in range(EXPERTS):
        prefix = f"model.layers.{layer}.block_sparse_moe.experts.{expert}"
        yield Linear(f"{prefix}.w1", WIDE, HIDDEN)
        yield Linear(f"{prefix}.w3", WIDE, HIDDEN)
        yield Linear(f"{prefix}.w2", HIDDEN, WIDE)
