"""Turns tokens into logits, for a flat batch of many sequences, in a sparse decoder (Mixtral) or a dense one."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from octavo.model.batch import ForwardBatch
from octavo.model.config import ModelConfig
from octavo.model.kv_cache import KVCache, LayerCache
from octavo.model.layers import Embedding, RMSNorm, RotaryEmbedding, Rotation
from octavo.model.moe import MoEBlock
from octavo.model.ops.attention import Plan
from octavo.model.ops.seams import Ops
from octavo.model.weights.forms import Weight
from octavo.model.weights.precision import SHORT, Precision


@dataclass(frozen=True, slots=True)
class ForwardPass:
    """A ForwardPass is what all layers share while one batch runs through them."""

    ops: Ops
    plan: Plan
    rotation: Rotation


@dataclass(frozen=True, slots=True)
class Attention:
    """Computes grouped-query attention (https://arxiv.org/abs/2305.13245) over the paged cache."""

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
    """Computes x + attention(norm(x)), then x + experts(norm(x))."""

    input_norm: RMSNorm
    attention: Attention
    post_norm: RMSNorm
    moe: MoEBlock

    def __call__(self, x: Tensor, pages: LayerCache, forward: ForwardPass) -> Tensor:
        """Maps x [T, H] to [T, H]."""
        x = x + self.attention(self.input_norm(x), pages, forward)
        return x + self.moe(self.post_norm(x), forward.ops)


class FusedLayers(Protocol):
    """FusedLayers compute what a decoder's layers compute one after the other, in fewer and larger operations."""

    def __call__(self, x: Tensor, cache: KVCache, forward: ForwardPass) -> Tensor:
        """Maps x [T, H] to [T, H]; x may be overwritten."""


@dataclass(frozen=True, slots=True)
class Decoder:
    """A Decoder is Mixtral of experts (https://arxiv.org/abs/2401.04088); Mistral and Llama are the case of one expert.

    It holds weights only: whatever changes is an argument.
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
    fused: FusedLayers | None = None  # None: the layers run one after the other, which is the reference of all others

    def forward(self, batch: ForwardBatch, cache: KVCache) -> Tensor:
        """Returns the logits [R, V] float32 of batch.logit_rows; then the cache holds the batch's keys and values."""
        return self.logits(self.hidden(batch, cache))

    def hidden(self, batch: ForwardBatch, cache: KVCache) -> Tensor:
        """Does what `forward` does up to the last layer, and returns hidden states [R, H].

        A caller that needs the logits of a few rows at a time gives them to `logits` piece by piece.
        """
        return self.states(batch, cache)[batch.logit_rows]

    def states(self, batch: ForwardBatch, cache: KVCache) -> Tensor:
        """Computes the batch into the cache; returns the states [T, H] of all its tokens behind the last layer."""
        x = self.embedding(batch.tokens)  # [T, H]
        plan = self.ops.plan_attention(batch, cache, self.config.sliding_window)
        forward = ForwardPass(self.ops, plan, self.rotary.at(batch.positions))
        if self.fused is not None:
            x = self.fused(x, cache, forward)
        else:
            for layer, pages in zip(self.layers, cache.layers, strict=True):
                x = layer(x, pages, forward)
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """Maps hidden states [R, H] to logits [R, V] float32."""
        if not hidden.shape[0]:  # a chunk that does not end its prompt
            return hidden.new_empty(0, self.config.vocab_size, dtype=torch.float32)
        return self.ops.linear(self.norm(hidden), self.head).float()

    def matrices(self) -> Iterator[Weight]:
        """Yields all matrices that tokens are multiplied with, except the routers."""
        for layer in self.layers:
            yield from (layer.attention.qkv, layer.attention.o, *layer.moe.experts.gate_up, *layer.moe.experts.down)
        yield self.head

    @property
    def activation_dtype(self) -> torch.dtype:
        """The KV cache has this dtype, too."""
        return self.precision.activations

    @property
    def weight_bytes(self) -> int:
        """Counts the bytes that the weights take as they are held; a table that is also the head counts once."""
        others = [self.embedding.table, self.norm.weight]
        for layer in self.layers:
            others += [layer.input_norm.weight, layer.post_norm.weight]
            others += [] if layer.moe.router is None else [layer.moe.router.weight]
        twice = self.head.nbytes if self.head is self.embedding.table else 0
        return sum(weight.nbytes for weight in (*others, *self.matrices())) - twice

    def describe(self) -> str:
        """Returns a line for the log: the size, and how the weights are held and computed."""
        active = "dense" if self.config.dense else f"{_count(self.config.num_active_parameters())} active"
        return (
            f"{_count(self.config.num_parameters())} parameters, {active}, {self.precision.describe()} weights "
            f"({self.weight_bytes / 1e9:.1f} GB), {SHORT[self.activation_dtype]} activations"
        )


def _count(parameters: int) -> str:
    return f"{parameters / 1e9:.1f}B" if parameters >= 1e9 else f"{parameters / 1e6:.0f}M"
