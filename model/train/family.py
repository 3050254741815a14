"""Knows which sparse family holds a dense model exactly, and how that family's files name things."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo.model.config import ModelConfig, ModelError

# Keys of a dense config.json that mean the same in the sparse family, whatever they hold.
KEPT = ("rope_scaling", "rope_parameters", "initializer_range", "bos_token_id", "eos_token_id", "pad_token_id")


@dataclass(frozen=True, slots=True)
class SparseFamily:
    """A SparseFamily says how transformers writes a sparse model."""

    model_type: str
    architecture: str
    block: str  # the part of a tensor's name between the layer and its experts
    words: tuple[str, str, str]  # gate, up, down

    def expert(self, layer: int, expert: int, part: int) -> str:
        """Returns the name of an expert's matrix; parts 0 to 2 are gate, up and down."""
        return f"model.layers.{layer}.{self.block}.experts.{expert}.{self.words[part]}.weight"

    def router(self, layer: int) -> str:
        """Returns the name of a layer's router."""
        return f"model.layers.{layer}.{self.block}.gate.weight"


MIXTRAL = SparseFamily("mixtral", "MixtralForCausalLM", "block_sparse_moe", ("w1", "w3", "w2"))
QWEN3_MOE = SparseFamily("qwen3_moe", "Qwen3MoeForCausalLM", "mlp", ("gate_proj", "up_proj", "down_proj"))
SPARSE_OF = {"llama": MIXTRAL, "mistral": MIXTRAL, "qwen3": QWEN3_MOE}


def family_for(directory: Path, config: ModelConfig) -> SparseFamily:
    """Returns the family that holds a dense checkpoint exactly. Raises ModelError where none does."""
    model_type = json.loads((directory / "config.json").read_text("utf-8"))["model_type"]
    if not config.dense:
        raise _refusal(directory, f"it is sparse already ({model_type})")
    if model_type not in SPARSE_OF:
        bias = ": its queries, keys and values have biases" if config.qkv_bias else ""
        raise _refusal(directory, f"no sparse family holds a {model_type} model exactly{bias}")
    family = SPARSE_OF[model_type]
    if family is MIXTRAL and config.qkv_bias:
        raise _refusal(directory, "its attention_bias is true, and a Mixtral has no biases")
    if len(config.windows()) > 1:
        raise _refusal(
            directory, "only some of its layers have a sliding window, and all of a sparse model attend alike"
        )
    return family


def _refusal(directory: Path, why: str) -> ModelError:
    return ModelError(
        f"{directory} cannot become a sparse model: {why}. Give a dense checkpoint of Llama, Mistral or Qwen3."
    )


@dataclass(frozen=True, slots=True)
class Sparsity:
    """A Sparsity says how many experts a layer has, and how many serve a token."""

    experts: int
    top_k: int


def sparse_config(directory: Path, dense: ModelConfig, family: SparseFamily, sparsity: Sparsity) -> dict[str, Any]:
    """Returns the config.json of a sparse model whose experts are as large as the dense feed-forward.

    The caller adds the type of the weights, and whether the head is the embedding.
    """
    given = json.loads((directory / "config.json").read_text("utf-8"))
    window = dense.window(0)
    config = {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "vocab_size": dense.vocab_size,
        "hidden_size": dense.hidden_size,
        "intermediate_size": dense.intermediate_size,
        "num_hidden_layers": dense.num_hidden_layers,
        "num_attention_heads": dense.num_attention_heads,
        "num_key_value_heads": dense.num_key_value_heads,
        "head_dim": dense.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": dense.max_position_embeddings,
        "rms_norm_eps": dense.rms_norm_eps,
        "rope_theta": dense.rope_theta,
        "sliding_window": window,
        "num_experts_per_tok": sparsity.top_k,
    }
    kept = {key: given[key] for key in KEPT if given.get(key) is not None}
    if family is MIXTRAL:
        return config | kept | {"num_local_experts": sparsity.experts}
    return (
        config
        | kept
        | {"num_experts": sparsity.experts, "moe_intermediate_size": dense.intermediate_size, "norm_topk_prob": True}
        | {"decoder_sparse_step": 1, "mlp_only_layers": [], "attention_bias": dense.qkv_bias}
        | {"use_sliding_window": window is not None}
    )
