"""Makes a config.json of a file's metadata, and refuses by name what they ask for and nobody here computes.

The keys are those of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md and of llama.cpp's gguf-py.
"""

import struct
from collections.abc import Sequence
from math import inf, pi
from reprlib import repr as shortened
from typing import Any

from octavo.model.gguf.architectures import Architecture
from octavo.model.gguf.fields import Fields
from octavo.model.gguf.file import GgufModel
from octavo.model.gguf.names import EMBEDDING, FREQUENCIES, OUTPUT
from octavo.model.gguf.types import TensorType

_OFF: tuple[Any, ...] = (0, False, "", [], None)
# What the model was trained in, by the type of its embedding. A quantised one does not say; nearly all are in bfloat16.
_DTYPES = {TensorType.F32: "float32", TensorType.F16: "float16"}
_SOFTMAX = 1  # of expert_gating_func
_COMPUTED = {
    "context_length",
    "embedding_length",
    "block_count",
    "feed_forward_length",
    "expert_feed_forward_length",
    "expert_count",
    "expert_used_count",
    "expert_weights_norm",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "attention.sliding_window",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
}
# What else may be there, and the values with which it asks for nothing.
_PASSED_OVER: dict[str, tuple[Any, ...]] = {
    "expert_gating_func": (*_OFF, _SOFTMAX),
    "expert_weights_scale": (*_OFF, 1.0),
    "attention.causal": (True,),
    "rope.scaling.attn_factor": (*_OFF, 1.0),
    "rope.scaling.yarn_attn_factor": (*_OFF, 1.0),
    "rope.scaling.yarn_ext_factor": (*_OFF, 1.0, -1.0),
}
_ABOUT_THE_FILE = {"vocab_size", "tensor_data_layout", "rope.scaling.finetuned"}

# The stretched frequencies of Llama 3.1 and later: all of these models have the same numbers, but for the factor.
_LOW, _HIGH, _ORIGINAL = 1.0, 4.0, 8192
_CLOSE = 1e-4  # relative


def config_of(model: GgufModel, architecture: Architecture) -> dict[str, Any]:
    """Returns what config.json has in the model's checkpoint. Raises ModelError."""
    fields = Fields(model.paths[0], model.metadata, f"{architecture.prefix}.")
    _refuse_what_is_strange(fields)
    heads = fields.integer("attention.head_count")
    hidden = fields.integer("embedding_length")
    head_dim = fields.integer("attention.key_length", max(1, hidden // heads))
    if fields.integer("attention.value_length", head_dim) != head_dim:
        raise fields.error(f"{fields.prefix}attention.value_length is not {head_dim}, the length of keys")
    if fields.integer("rope.dimension_count", head_dim) != head_dim:
        raise fields.error(f"{fields.prefix}rope.dimension_count is not {head_dim}, and only whole heads are rotated")
    scaling = _scaling(fields, model, head_dim)
    return {
        "model_type": architecture.model_type,
        "vocab_size": _vocabulary(fields, model),
        "hidden_size": hidden,
        "num_hidden_layers": fields.integer("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": fields.integer("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "rms_norm_eps": fields.number("attention.layer_norm_rms_epsilon"),
        "rope_theta": fields.number("rope.freq_base", 10000.0),
        **({} if scaling is None else {"rope_scaling": scaling}),
        "max_position_embeddings": fields.integer("context_length"),
        "sliding_window": _window(fields, architecture),
        "tie_word_embeddings": OUTPUT not in model.tensors,
        "dtype": _DTYPES.get(model.tensors[EMBEDDING].type, "bfloat16"),
        **_feed_forward(fields, architecture),
    }


def _refuse_what_is_strange(fields: Fields) -> None:
    for name, value in fields.values.items():
        key = name.removeprefix(fields.prefix)
        if key == name or key in _COMPUTED or key in _ABOUT_THE_FILE:
            continue
        if not any(value == each for each in _PASSED_OVER.get(key, _OFF)):
            raise fields.error(f"{name} is {shortened(value)}, and nothing here computes with it")


def _vocabulary(fields: Fields, model: GgufModel) -> int:
    """Returns the rows of the embedding."""
    embedding = model.tensors.get(EMBEDDING)
    if embedding is None or len(embedding.shape) != 2:
        raise fields.error(f"it has no matrix {EMBEDDING}")
    return embedding.shape[0]


def _window(fields: Fields, architecture: Architecture) -> int | None:
    if not fields.get("attention.sliding_window"):
        return None
    if architecture.model_type not in ("mistral", "mixtral"):
        raise fields.error(f"{fields.prefix}attention.sliding_window is set, and {architecture.model_type} has none")
    return fields.integer("attention.sliding_window")


def _feed_forward(fields: Fields, architecture: Architecture) -> dict[str, Any]:
    if architecture.experts is None:
        return {"intermediate_size": fields.integer("feed_forward_length")}
    count, chosen = fields.integer("expert_count"), fields.integer("expert_used_count")
    normalised = fields.flag("expert_weights_norm", True)
    if architecture.model_type == "mixtral":
        if not normalised:
            raise fields.error(
                f"{fields.prefix}expert_weights_norm is false, and Mixtral's weights are always divided by their sum"
            )
        wide = fields.integer("expert_feed_forward_length", fields.integer("feed_forward_length"))
        return {"intermediate_size": wide, "num_local_experts": count, "num_experts_per_tok": chosen}
    return {
        "intermediate_size": fields.integer("feed_forward_length", 1),
        "moe_intermediate_size": fields.integer("expert_feed_forward_length"),
        "num_experts": count,
        "num_experts_per_tok": chosen,
        "norm_topk_prob": normalised,
    }


def _scaling(fields: Fields, model: GgufModel, head_dim: int) -> dict[str, Any] | None:
    """Returns what config.json calls rope_scaling; None where frequencies are as they are."""
    kind = fields.text("rope.scaling.type", "none")
    factor = fields.number("rope.scaling.factor", 1.0) if fields.get("rope.scaling.factor") else 1.0
    stretched = _llama3(fields, model, head_dim)
    if kind in ("none", "linear") and factor == 1.0 or kind == "none":
        return stretched
    if kind != "yarn" or stretched is not None:
        raise fields.error(f"{fields.prefix}rope.scaling.type is {shortened(kind)}, and only 'yarn' is known")
    original = fields.integer("rope.scaling.original_context_length")
    scaling: dict[str, Any] = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
    for name in ("beta_fast", "beta_slow"):
        if fields.get(f"rope.scaling.yarn_{name}") is not None:
            scaling[name] = fields.number(f"rope.scaling.yarn_{name}")
    return scaling


def _llama3(fields: Fields, model: GgufModel, head_dim: int) -> dict[str, Any] | None:
    """Finds the parameters of Llama 3.1's frequencies, which llama.cpp stores as a tensor of divisors."""
    if FREQUENCIES not in model.tensors:
        return None
    divisors = _floats(fields, model, head_dim // 2)
    if all(each == 1.0 for each in divisors):
        return None
    if not all(0 < each < inf for each in divisors):
        raise fields.error(f"the numbers in {FREQUENCIES} are not above 0, or not finite")
    factor = float(f"{max(divisors):.7g}")
    expected = _divisors(fields.number("rope.freq_base", 10000.0), head_dim, factor)
    if not all(abs(a - b) <= _CLOSE * b for a, b in zip(divisors, expected, strict=True)):
        raise fields.error(f"the numbers in {FREQUENCIES} are not those of Llama 3.1")
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": _LOW,
        "high_freq_factor": _HIGH,
        "original_max_position_embeddings": _ORIGINAL,
    }


def _divisors(theta: float, head_dim: int, factor: float) -> list[float]:
    """Returns by what each frequency is divided.

    Frequencies with fewer than _LOW turns in the original context are divided by the factor, those with more than
    _HIGH by 1, and between these the frequency itself is interpolated.
    """
    divisors = []
    for n in range(0, head_dim, 2):
        turns = _ORIGINAL / (2 * pi * theta ** (n / head_dim))
        smooth = min(1.0, max(0.0, (turns - _LOW) / (_HIGH - _LOW)))
        divisors.append(1 / ((1 - smooth) / factor + smooth))
    return divisors


def _floats(fields: Fields, model: GgufModel, count: int) -> Sequence[float]:
    """Reads the tensor of divisors."""
    stored = model.tensors[FREQUENCIES]
    if stored.type is not TensorType.F32 or stored.shape != (count,):
        raise fields.error(f"{FREQUENCIES} does not hold {count} numbers in F32")
    with stored.path.open("rb") as file:
        file.seek(stored.offset)
        return struct.unpack(f"<{count}f", file.read(stored.size))
