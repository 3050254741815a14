"""Says how each family's decoder differs from Mixtral's, in the words of ModelConfig: one function a family.

A family is a model_type of config.json. Its defaults are what a missing key means in transformers' configuration
classes. The functions read what a file says, and refuse by name what would be computed wrongly.
"""

from collections.abc import Callable
from dataclasses import dataclass
from reprlib import repr as shortened
from typing import Any

from octavo.model.config_file import ConfigFile

Described = dict[str, Any]  # fields of ModelConfig


@dataclass(frozen=True, slots=True)
class Swiglu:
    """A Swiglu is a gated activation (https://arxiv.org/abs/2002.05202) of gate g and up u.

    min(g, limit) * sigmoid(alpha * min(g, limit)) * (clamp(u, -limit, limit) + shift)
    """

    alpha: float = 1.0
    limit: float | None = None
    shift: float = 0.0


@dataclass(frozen=True, slots=True)
class Family:
    """A Family is what its model_type implies."""

    describe: Callable[[ConfigFile], Described]
    defaults: Described


def _mixtral(fields: ConfigFile) -> Described:
    _refuse(fields, "attention_bias", "mlp_bias")
    _alike(fields)
    return _experts(fields) | {"sliding_window": fields.optional_integer("sliding_window")}


def _mistral(fields: ConfigFile) -> Described:
    _refuse(fields, "attention_bias", "mlp_bias")
    _alike(fields)
    return DENSE | {"sliding_window": fields.optional_integer("sliding_window")}


def _llama(fields: ConfigFile) -> Described:
    _refuse(fields, "mlp_bias")
    _alike(fields)  # transformers' Llama sees every key, whatever a file says of a window
    return DENSE | _bias(fields)


def _qwen2(fields: ConfigFile) -> Described:
    return DENSE | {"qkv_bias": True} | _late_windows(fields)


def _qwen3(fields: ConfigFile) -> Described:
    return DENSE | {"qk_norm": "head"} | _bias(fields) | _late_windows(fields)


def _qwen2_moe(fields: ConfigFile) -> Described:
    shared = {"shared_intermediate_size": fields.integer("shared_expert_intermediate_size")}
    return _qwen_experts(fields) | shared | {"qkv_bias": fields.flag("qkv_bias")} | _early_windows(fields)


def _qwen3_moe(fields: ConfigFile) -> Described:
    _alike(fields)
    window = fields.optional_integer("sliding_window") if fields.flag("use_sliding_window") else None
    return _qwen_experts(fields) | {"qk_norm": "head", "sliding_window": window} | _bias(fields)


def _olmoe(fields: ConfigFile) -> Described:
    _alike(fields)
    return (
        _experts(fields)
        | {"normalise_top_k": fields.flag("norm_topk_prob"), "qk_norm": "projection"}
        | {"clip_qkv": fields.optional_number("clip_qkv", least=1e-6)}
        | _bias(fields)
    )


def _granite_moe(fields: ConfigFile) -> Described:
    _alike(fields)
    multipliers = ("embedding_multiplier", "residual_multiplier", "logits_scaling")
    return (
        _experts(fields)
        | {name: fields.number(name) for name in multipliers}
        | {"attention_scale": fields.number("attention_multiplier")}
        | _bias(fields)
    )


def _phi_moe(fields: ConfigFile) -> Described:
    _alike(fields)
    if fields.integer("num_experts_per_tok") != 2:
        raise fields.error("num_experts_per_tok is not 2, and the sparse mixer chooses two experts")
    return (
        _experts(fields)
        | {"norm": "layer", "jitter": fields.optional_number("router_jitter_noise", most=1)}
        | {"head_bias": fields.flag("lm_head_bias"), "sliding_window": fields.optional_integer("sliding_window")}
        | _bias(fields)
    )


def _gpt_oss(fields: ConfigFile) -> Described:
    if not fields.flag("attention_bias"):
        raise fields.error("attention_bias is false, and gpt-oss has one in each layer")
    window = fields.optional_integer("sliding_window")
    alternate = tuple(layer % 2 == 0 for layer in range(fields.integer("num_hidden_layers")))
    return (
        _experts(fields)
        | {"sinks": True, "router_bias": True, "expert_bias": True, "sliding_window": window}
        | {"activation": Swiglu(fields.number("swiglu_alpha"), fields.number("swiglu_limit"), shift=1.0)}
        | {"windowed": _layer_types(fields, alternate) if window else ()}
        | _bias(fields)
    )


DENSE: Described = {"num_experts": 1, "num_experts_per_tok": 1, "dense": True}


def _experts(fields: ConfigFile) -> Described:
    """Reads the number of experts, which newer transformers call by another name than most released files."""
    return {
        "num_experts": fields.integer("num_local_experts", "num_experts"),
        "num_experts_per_tok": fields.integer("num_experts_per_tok"),
    }


def _qwen_experts(fields: ConfigFile) -> Described:
    """Reads which layers are sparse: every n-th one, unless it is listed as dense."""
    layers, step = fields.integer("num_hidden_layers"), fields.integer("decoder_sparse_step")
    listed = fields.integers("mlp_only_layers")
    return (
        _experts(fields)
        | {
            "normalise_top_k": fields.flag("norm_topk_prob"),
            "intermediate_size": fields.integer("moe_intermediate_size"),
        }
        | {"dense_intermediate_size": fields.integer("intermediate_size")}
        | {"dense_layers": tuple(n for n in range(layers) if (n + 1) % step or n in listed)}
    )


def _bias(fields: ConfigFile) -> Described:
    """Reads the one key that gives all four matrices of attention a bias."""
    return {"qkv_bias": fields.flag("attention_bias"), "o_bias": fields.flag("attention_bias")}


def _late_windows(fields: ConfigFile) -> Described:
    """Reads which of the dense Qwen models' layers have a window: those from max_window_layers on."""
    if not fields.flag("use_sliding_window") or not (window := fields.optional_integer("sliding_window")):
        return {"sliding_window": None}
    first = fields.integer("max_window_layers", default=0, least=0)
    layers = fields.integer("num_hidden_layers")
    return {"sliding_window": window, "windowed": _layer_types(fields, tuple(n >= first for n in range(layers)))}


def _early_windows(fields: ConfigFile) -> Described:
    """Reads which of Qwen2-MoE's layers have a window: every second one before max_window_layers."""
    if not fields.flag("use_sliding_window") or not (window := fields.optional_integer("sliding_window")):
        return {"sliding_window": None}
    first = fields.integer("max_window_layers", default=0, least=0)
    layers = range(fields.integer("num_hidden_layers"))
    return {"sliding_window": window, "windowed": _layer_types(fields, tuple(n % 2 == 0 and n < first for n in layers))}


LAYER_TYPES = {"sliding_attention": True, "full_attention": False}


def _layer_types(fields: ConfigFile, implied: tuple[bool, ...]) -> tuple[bool, ...]:
    """Returns which layers have a window: what layer_types lists or, without it, what the family implies."""
    listed = fields.values.get("layer_types")
    if listed is None:
        return implied
    if not isinstance(listed, list) or len(listed) != len(implied):
        raise fields.error(f"layer_types is {shortened(listed)}, not a list of {len(implied)} layers")
    for each in listed:
        if each not in tuple(LAYER_TYPES):
            raise fields.error(f"layer_types has {shortened(each)}, and only {' and '.join(LAYER_TYPES)} are known")
    return tuple(LAYER_TYPES[each] for each in listed)


def _alike(fields: ConfigFile) -> None:
    """Raises ModelError where a family's layers attend alike and the file says that they do not."""
    listed = fields.values.get("layer_types")
    if isinstance(listed, list) and len(set(map(str, listed))) > 1:
        raise fields.error("layer_types differ, and all layers of this model_type attend alike here")


def _refuse(fields: ConfigFile, *names: str) -> None:
    for name in names:
        if fields.values.get(name):
            raise fields.error(f"{name} is set, and layers of this model_type have no bias here")


_MIXTRAL = {"num_key_value_heads": 8, "max_position_embeddings": 4096 * 32, "rms_norm_eps": 1e-5, "rope_theta": 1e6}
_MISTRAL = _MIXTRAL | {"rms_norm_eps": 1e-6, "rope_theta": 1e4, "sliding_window": 4096}
_LLAMA = {"max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "rope_theta": 1e4}
_QWEN = {"max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "rope_theta": 1e4, "sliding_window": 4096}
_SPARSE_QWEN = _QWEN | {"decoder_sparse_step": 1, "intermediate_size": 6144, "moe_intermediate_size": 768}
_GPT_OSS_ROPE = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}

FAMILIES = {
    "mixtral": Family(_mixtral, _MIXTRAL),
    "mistral": Family(_mistral, _MISTRAL),
    "llama": Family(_llama, _LLAMA),
    "qwen2": Family(_qwen2, _QWEN | {"max_window_layers": 28}),
    "qwen3": Family(_qwen3, _QWEN | {"max_window_layers": 28, "head_dim": 128}),
    "qwen2_moe": Family(
        _qwen2_moe,
        _SPARSE_QWEN
        | {"num_key_value_heads": 16, "max_window_layers": 28, "qkv_bias": True}
        | {"intermediate_size": 5632, "moe_intermediate_size": 1408, "shared_expert_intermediate_size": 5632}
        | {"num_experts": 60, "num_experts_per_tok": 4},
    ),
    "qwen3_moe": Family(
        _qwen3_moe, _SPARSE_QWEN | {"num_key_value_heads": 4, "num_experts": 128, "num_experts_per_tok": 8}
    ),
    "olmoe": Family(
        _olmoe,
        {"max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 1e4}
        | {"intermediate_size": 2048, "num_experts": 64, "num_experts_per_tok": 8},
    ),
    "granitemoe": Family(
        _granite_moe,
        _LLAMA
        | {"embedding_multiplier": 1.0, "residual_multiplier": 1.0, "logits_scaling": 1.0, "attention_multiplier": 1.0}
        | {"num_experts": 8, "num_experts_per_tok": 2},
    ),
    "phimoe": Family(
        _phi_moe,
        _MIXTRAL
        | {"intermediate_size": 6400, "num_experts": 16, "num_experts_per_tok": 2, "router_jitter_noise": 0.01},
    ),
    "gpt_oss": Family(
        _gpt_oss,
        {"num_key_value_heads": 8, "head_dim": 64, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5}
        | {"sliding_window": 128, "rope_theta": 150000.0, "rope_scaling": _GPT_OSS_ROPE, "attention_bias": True}
        | {"swiglu_alpha": 1.702, "swiglu_limit": 7.0, "num_experts": 128, "num_experts_per_tok": 4},
    ),
}
