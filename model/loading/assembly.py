"""Puts a Decoder together from its pieces, whether they are read from a checkpoint or mapped from a tile file."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from octavo.model.config import ModelConfig
from octavo.model.decoder import Attention, Decoder, DecoderLayer
from octavo.model.kernels.choice import Backend
from octavo.model.layers import Embedding, RMSNorm, RotaryEmbedding
from octavo.model.loading.names import LayerNames, Names, TensorSlice
from octavo.model.moe import MoEBlock, Router
from octavo.model.weights.forms import ExpertWeights, Weight
from octavo.model.weights.precision import Precision

Taken = Callable[..., None]  # is called with the slices that are in the model now


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """LayerWeights are the weights of one decoder layer, as they are held."""

    input_norm: Tensor
    qkv: Weight
    o: Weight
    post_norm: Tensor
    router: Tensor | None  # None in a dense layer
    experts: ExpertWeights


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

    def vector(self, source: TensorSlice) -> Tensor:
        """Returns the weights of a norm, in the dtype of the activations."""

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
            layers.append(_layer(config, backend.norm, weights))
    norm = backend.norm.create(supply.vector(names.norm), config.rms_norm_eps)
    taken(names.norm)
    return Decoder(
        config=config,
        device=backend.device,
        precision=precision,
        ops=backend.ops,
        embedding=Embedding(embedding, precision.activations),
        rotary=RotaryEmbedding.create(config, backend.device),
        layers=tuple(layers),
        norm=norm,
        head=embedding if head is None else head,
        fused=backend.fuse(tuple(layers)),
    )


def _layer(config: ModelConfig, norm: type[RMSNorm], weights: LayerWeights) -> DecoderLayer:
    router = None if weights.router is None else Router(weights.router, config.num_experts_per_tok)
    return DecoderLayer(
        input_norm=norm.create(weights.input_norm, config.rms_norm_eps),
        attention=Attention(
            qkv=weights.qkv,
            o=weights.o,
            num_heads=config.num_attention_heads,
            num_kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
        ),
        post_norm=norm.create(weights.post_norm, config.rms_norm_eps),
        moe=MoEBlock(router, weights.experts),
    )
