"""Decoder: tokens in, logits out, for a flat batch of many sequences; sparse (Mixtral) or dense (Mistral, Llama)."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from octavo.model.batch import ForwardBatch
from octavo.model.config import ModelConfig
from octavo.model.kv_cache import KVCache, LayerCache
from octavo.model.layers import Embedding, RMSNorm, RotaryEmbedding, Rotation, RowNorm
from octavo.model.moe import MoEBlock, Observe
from octavo.model.ops.seams import Ops, Plan
from octavo.model.weights.kinds import Weight
from octavo.model.weights.precision import SHORT, Precision


@dataclass(frozen=True, slots=True)
class ForwardPass:
    """A ForwardPass is what all layers share while one batch runs through them."""

    ops: Ops
    plan: Plan
    rotation: Rotation


@dataclass(frozen=True, slots=True)
class Attention:
    """Grouped-query attention (https://arxiv.org/abs/2305.13245) over the paged cache."""

    qkv: Weight  # [(Hq + 2 Hkv) * D, H]
    o: Weight  # [H, Hq * D]
    num_heads: int  # Hq
    num_kv_heads: int  # Hkv
    head_dim: int  # D

    def __call__(self, x: Tensor, pages: LayerCache, forward: ForwardPass) -> Tensor:
        heads = forward.ops.linear(x, self.qkv).view(x.shape[0], -1, self.head_dim)  # [T, Hq + 2 Hkv, D]
        rotated, values = heads.split((self.num_heads + self.num_kv_heads, self.num_kv_heads), dim=1)
        queries, keys = forward.rotation(rotated).split((self.num_heads, self.num_kv_heads), dim=1)
        return forward.ops.linear(forward.ops.attention(queries, keys, values, pages, forward.plan), self.o)  # [T, H]


@dataclass(frozen=True, slots=True)
class DecoderLayer:
    """x + attention(norm(x)), then x + experts(norm(x))."""

    input_norm: RMSNorm
    attention: Attention
    post_norm: RMSNorm
    moe: MoEBlock
    fused: "Fused | None" = None  # another way to the same result, of which the plain one is the reference

    def __call__(self, x: Tensor, pages: LayerCache, forward: ForwardPass, observe: Observe | None = None) -> Tensor:
        """x [T, H] -> [T, H]; x may be overwritten."""
        if self.fused is not None:
            return self.fused(x, pages, forward, observe)
        x = x + self.attention(self.input_norm(x), pages, forward)
        return x + self.moe(self.post_norm(x), forward.ops, observe)


class Fused(Protocol):
    """A whole layer in fewer, larger operations."""

    def __call__(self, x: Tensor, pages: LayerCache, forward: ForwardPass, observe: Observe | None = None) -> Tensor:
        """As DecoderLayer."""


class FusedLayers(Protocol):
    """All layers in operations that cross the borders between them."""

    def __call__(self, x: Tensor, cache: KVCache, forward: ForwardPass, observe: Observe | None = None) -> Tensor:
        """x [T, H] -> [T, H], as the layers one after the other."""


@dataclass(frozen=True, slots=True)
class Decoder:
    """Mixtral of experts (https://arxiv.org/abs/2401.04088), and Mistral and Llama as the case of one expert.

    Holds weights only: whatever changes is an argument.
    """

    config: ModelConfig
    device: torch.device
    precision: Precision
    ops: Ops
    embedding: Embedding
    rotary: RotaryEmbedding
    layers: tuple[DecoderLayer, ...]
    norm: RMSNorm
    head: Weight  # [V, H]
    fused: FusedLayers | None = None  # another way through all layers, of which the plain one is the reference

    def forward(self, batch: ForwardBatch, cache: KVCache, observe: Observe | None = None) -> Tensor:
        """Logits [R, V] float32 of batch.logit_rows; the batch's keys and values are in the cache afterwards.

        observe(layer, ids [T, k]) is called with the experts that each layer chose; a dense layer chooses none.
        """
        return self.logits(self.hidden(batch, cache, observe))

    def hidden(self, batch: ForwardBatch, cache: KVCache, observe: Observe | None = None) -> Tensor:
        """The same up to the last layer: hidden states [R, H], for whoever wants the logits of a few at a time."""
        x = self.embedding(batch.tokens)  # [T, H]
        plan = self.ops.plan_attention(batch, cache, self.config.sliding_window)
        forward = ForwardPass(self.ops, plan, self.rotary.at(batch.positions))
        if self.fused is not None:
            x = self.fused(x, cache, forward, observe)
        else:
            for layer, pages in zip(self.layers, cache.layers, strict=True):
                x = layer(x, pages, forward, observe)
        return x[batch.logit_rows]  # [R, H]

    def logits(self, hidden: Tensor) -> Tensor:
        """[R, H] -> [R, V] float32."""
        if not hidden.shape[0]:  # a chunk that does not end its prompt
            return hidden.new_empty(0, self.config.vocab_size, dtype=torch.float32)
        return self.ops.linear(self.norm(hidden), self.head).float()

    def row_by_row(self, ops: Ops) -> "Decoder":
        """The plain composition over such operations, with norms of which no row depends on the others either."""

        def alone(norm: RMSNorm) -> RMSNorm:
            return RowNorm(norm.weight, norm.root_eps)

        layers = (
            replace(layer, input_norm=alone(layer.input_norm), post_norm=alone(layer.post_norm), fused=None)
            for layer in self.layers
        )
        return replace(self, ops=ops, layers=tuple(layers), norm=alone(self.norm), fused=None)

    def matrices(self) -> Iterator[Weight]:
        """Everything that tokens are multiplied with, except the routers."""
        for layer in self.layers:
            yield from (layer.attention.qkv, layer.attention.o, *layer.moe.experts.gate_up, *layer.moe.experts.down)
        yield self.head

    @property
    def activation_dtype(self) -> torch.dtype:
        """Also of the KV cache."""
        return self.precision.activations

    @property
    def weight_bytes(self) -> int:
        """Memory that the weights take as they are held; a tied table counts once unless it is held twice."""
        small = [self.embedding.table, self.norm.weight]
        for layer in self.layers:
            small += [layer.input_norm.weight, layer.post_norm.weight]
            small += [] if layer.moe.router is None else [layer.moe.router.weight]
        return sum({id(weight): weight.nbytes for weight in (*small, *self.matrices())}.values())

    def describe(self) -> str:
        """One line for the log: size, and how the weights are held and computed."""
        active = "dense" if self.config.dense else f"{_count(self.config.num_active_parameters())} active"
        return (
            f"{_count(self.config.num_parameters())} parameters, {active}, {self.precision.describe()} weights "
            f"({self.weight_bytes / 1e9:.1f} GB), {SHORT[self.activation_dtype]} activations"
        )


def _count(parameters: int) -> str:
    return f"{parameters / 1e9:.1f}B" if parameters >= 1e9 else f"{parameters / 1e6:.0f}M"
