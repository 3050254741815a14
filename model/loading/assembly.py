"""Puts a Decoder together from its pieces, whether they are read from a checkpoint or mapped from a tile file."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from octavo.model.config import ModelConfig
from octavo.model.decoder import Attention, Decoder, DecoderLayer
from octavo.model.kernels.choice import Backend
from octavo.model.layers import Embedding, LayerNorm, Norm, RMSNorm, RotaryEmbedding
from octavo.model.loading.names import LayerNames, Matrix, Names, TensorSlice
from octavo.model.moe import MoEBlock, Router, SharedExpert
from octavo.model.weights.forms import ExpertWeights, Weight
from octavo.model.weights.precision import Precision

Taken = Callable[..., None]  # is called with the slices that are in the model now


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """LayerWeights are the weights of one decoder layer, as they are held."""

    vectors: Mapping[str, Tensor]  # under the names that the table of names gives them
    qkv: Weight
    o: Weight
    gate_up: tuple[Weight, ...]
    down: tuple[Weight, ...]
    shared: tuple[Weight, Weight] | None = None


class Supply(Protocol):
    """A Supply has the weights of a model under the names of a table; `layer` may be called by several threads."""

    @property
    def config(self) -> ModelConfig: ...

    @property
    def backend(self) -> Backend: ...

    @property
    def precision(self) -> Precision: ...

    def table(self, source: TensorSlice) -> Tensor:
        """Returns the embedding."""

    def head(self, source: TensorSlice) -> Weight:
        """Returns the matrix that makes logits."""

    def vectors(self, names: Mapping[str, Matrix]) -> dict[str, Tensor]:
        """Returns the tensors outside of layers that tokens are not multiplied with, such as the last norm."""

    def layer(self, names: LayerNames) -> LayerWeights:
        """Returns the weights of one layer."""


def assemble(supply: Supply, names: Names, threads: int, taken: Taken = lambda *slices: None) -> Decoder:
    """Returns the model. So many threads ask for a layer each."""
    config, backend, precision = supply.config, supply.backend, supply.precision
    tied = names.head is names.embedding and precision.has_plain_linears
    # The head is the largest matrix: it is packed while little else is held, so that its staging is no peak.
    head = None if tied else supply.head(names.head)
    taken(names.head)
    embedding = supply.table(names.embedding)
    taken(names.embedding)
    layers: list[DecoderLayer] = []
    with ThreadPoolExecutor(threads) as pool:
        for weights in pool.map(supply.layer, names.layers):
            taken(*names.layers[len(layers)].slices())
            layers.append(_layer(config, backend.norm, len(layers), weights))
    vectors = supply.vectors(names.vectors)
    taken(*(source for group in names.vectors.values() for source in group))
    return Decoder(
        config=config,
        device=backend.device,
        precision=precision,
        ops=backend.ops,
        embedding=Embedding(embedding, precision.activations, config.embedding_multiplier),
        rotary=RotaryEmbedding.create(config, backend.device),
        layers=tuple(layers),
        norm=_norm(config, backend.norm, vectors, "norm"),
        head=embedding if head is None else head,
        head_bias=vectors.get("head_bias"),
        fused=backend.fuse(tuple(layers)),
    )


def _layer(config: ModelConfig, norm: type[RMSNorm], index: int, weights: LayerWeights) -> DecoderLayer:
    return DecoderLayer(
        input_norm=_norm(config, norm, weights.vectors, "input_norm"),
        attention=_attention(config, norm, index, weights),
        post_norm=_norm(config, norm, weights.vectors, "post_norm"),
        moe=_moe(config, weights),
        residual=config.residual_multiplier,
    )


def _norm(config: ModelConfig, norm: type[RMSNorm], vectors: Mapping[str, Tensor], name: str) -> Norm:
    if config.norm == "layer":
        return LayerNorm(vectors[name], vectors[f"{name}_bias"], config.rms_norm_eps)
    return norm.create(vectors[name], config.rms_norm_eps)


def _attention(config: ModelConfig, norm: type[RMSNorm], index: int, weights: LayerWeights) -> Attention:
    vectors = weights.vectors
    normed = {
        name: norm.create(vectors[name], config.rms_norm_eps) if name in vectors else None
        for name in ("q_norm", "k_norm")
    }
    return Attention(
        qkv=weights.qkv,
        o=weights.o,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        qkv_bias=vectors.get("qkv_bias"),
        o_bias=vectors.get("o_bias"),
        **normed,
        clip=config.clip_qkv,
        scale=config.attention_scale,
        sinks=vectors["sinks"].float() if "sinks" in vectors else None,
        window=config.window(index),
    )


def _moe(config: ModelConfig, weights: LayerWeights) -> MoEBlock:
    vectors, router, shared = weights.vectors, None, None
    experts = ExpertWeights(
        weights.gate_up, weights.down, vectors.get("gate_up_bias"), vectors.get("down_bias"), config.activation
    )
    if "router" in vectors:
        router = Router(
            vectors["router"],
            config.num_experts_per_tok,
            vectors["router_bias"].float() if "router_bias" in vectors else None,
            config.normalise_top_k,
            config.residual_multiplier,
            config.jitter,
        )
    if weights.shared is not None:
        gate_up, down = weights.shared
        shared = SharedExpert(ExpertWeights((gate_up,), (down,), activation=config.activation), vectors["shared_gate"])
    return MoEBlock(router, experts, shared)


def layer_weights(layer: DecoderLayer) -> LayerWeights:
    """Returns the weights of a layer that `assemble` made."""
    attention, moe = layer.attention, layer.moe
    found = {
        **_norm_vectors(layer.input_norm, "input_norm"),
        "qkv_bias": attention.qkv_bias,
        "o_bias": attention.o_bias,
        "q_norm": None if attention.q_norm is None else attention.q_norm.weight,
        "k_norm": None if attention.k_norm is None else attention.k_norm.weight,
        "sinks": attention.sinks,
        **_norm_vectors(layer.post_norm, "post_norm"),
        "router": None if moe.router is None else moe.router.weight,
        "router_bias": None if moe.router is None else moe.router.bias,
        "gate_up_bias": moe.experts.gate_up_bias,
        "down_bias": moe.experts.down_bias,
        "shared_gate": None if moe.shared is None else moe.shared.gate,
    }
    dtype = layer.input_norm.weight.dtype  # the activations'; sinks and the router's bias are computed with in float32
    vectors = {name: vector.to(dtype) for name, vector in found.items() if vector is not None}
    shared = None if moe.shared is None else (moe.shared.experts.gate_up[0], moe.shared.experts.down[0])
    return LayerWeights(vectors, attention.qkv, attention.o, moe.experts.gate_up, moe.experts.down, shared)


def outer_vectors(model: Decoder) -> dict[str, Tensor]:
    """Returns the vectors outside of the layers of a model that `assemble` made."""
    bias = {} if model.head_bias is None else {"head_bias": model.head_bias}
    return _norm_vectors(model.norm, "norm") | bias


def _norm_vectors(norm: Norm, name: str) -> dict[str, Tensor]:
    bias = {f"{name}_bias": norm.bias} if isinstance(norm, LayerNorm) else {}
    return {name: norm.weight} | bias
