"""Turns tokens into logits, for a flat batch of many sequences, in a sparse decoder (Mixtral) or a dense one."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from octavo.model.batch import ForwardBatch
from octavo.model.config import ModelConfig
from octavo.model.kv_cache import KVCache, LayerCache
from octavo.model.layers import Embedding, LayerNorm, Norm, RMSNorm, RotaryEmbedding, Rotation
from octavo.model.moe import MoEBlock
from octavo.model.ops.attention import Plan
from octavo.model.ops.seams import Ops
from octavo.model.routes import Routes, Routing
from octavo.model.weights.forms import Weight
from octavo.model.weights.precision import SHORT, Precision


@dataclass(frozen=True, slots=True)
class ForwardPass:
    """A ForwardPass is what all layers share while one batch runs through them."""

    ops: Ops
    plans: Mapping[int | None, Plan]  # for each window that a layer has
    rotation: Rotation
    routing: Routing = field(default_factory=Routing)


@dataclass(frozen=True, slots=True)
class Attention:
    """Computes grouped-query attention (https://arxiv.org/abs/2305.13245) over the paged cache."""

    qkv: Weight  # [(Hq + 2 Hkv) * D, H]
    o: Weight  # [H, Hq * D]
    num_heads: int  # Hq
    num_kv_heads: int  # Hkv
    head_dim: int  # D
    qkv_bias: Tensor | None = None  # [(Hq + 2 Hkv) * D]
    o_bias: Tensor | None = None  # [H]
    q_norm: RMSNorm | None = None  # of each head, its weight [D], or of all heads together, [Hq * D]
    k_norm: RMSNorm | None = None  # [D] or [Hkv * D]
    clip: float | None = None  # largest magnitude of queries, keys and values
    scale: float | None = None  # of the scores; None: D ** -0.5
    sinks: Tensor | None = None  # [Hq] float32; exp(sink) is one more summand of the softmax's denominator
    window: int | None = None

    def __call__(self, x: Tensor, pages: LayerCache, forward: ForwardPass) -> Tensor:
        """Maps x [T, H] to [T, H]."""
        queries, keys, values = self._heads(x, forward.ops)
        queries, keys = forward.rotation(queries), forward.rotation(keys)
        if self.scale is not None:  # The seam's own scale is D ** -0.5.
            queries = queries * (self.scale * self.head_dim**0.5)
        plan = forward.plans[self.window]
        attended = forward.ops.attention(queries, keys, values, pages, plan, self.sinks)  # [T, Hq * D]
        out = forward.ops.linear(attended, self.o)
        return out if self.o_bias is None else out + self.o_bias

    def _heads(self, x: Tensor, ops: Ops) -> tuple[Tensor, Tensor, Tensor]:
        """Returns queries [T, Hq, D], keys and values [T, Hkv, D], before they are rotated."""
        joined = ops.linear(x, self.qkv)  # [T, (Hq + 2 Hkv) * D]
        joined = joined if self.qkv_bias is None else joined + self.qkv_bias
        counts = self.num_heads, self.num_kv_heads, self.num_kv_heads
        queries, keys, values = joined.unflatten(1, (-1, self.head_dim)).split(counts, dim=1)
        queries, keys = _normed(queries, self.q_norm), _normed(keys, self.k_norm)
        return _clipped(queries, self.clip), _clipped(keys, self.clip), _clipped(values, self.clip)


def _clipped(heads: Tensor, most: float | None) -> Tensor:
    return heads if most is None else heads.clamp(-most, most)


def _normed(heads: Tensor, norm: RMSNorm | None) -> Tensor:
    """Norms heads [T, N, D], each by itself or all of a token together: the size of the weight says which."""
    if norm is None:
        return heads
    if norm.weight.shape[0] == heads.shape[-1]:
        return norm(heads.flatten(0, 1)).view_as(heads)
    return norm(heads.flatten(1)).view_as(heads)


@dataclass(frozen=True, slots=True)
class DecoderLayer:
    """Computes x + residual * attention(norm(x)), then x + residual * experts(norm(x))."""

    input_norm: Norm
    attention: Attention
    post_norm: Norm
    moe: MoEBlock
    residual: float = 1.0  # The router's scale carries it for the experts.

    def __call__(self, x: Tensor, pages: LayerCache, forward: ForwardPass) -> Tensor:
        """Maps x [T, H] to [T, H]."""
        return self.mix(self.attend(x, pages, forward), forward)

    def attend(self, x: Tensor, pages: LayerCache, forward: ForwardPass) -> Tensor:
        """Computes the first half of the layer: maps x [T, H] to [T, H]."""
        attended = self.attention(self.input_norm(x), pages, forward)
        return x + (attended if self.residual == 1 else attended * self.residual)

    def mix(self, x: Tensor, forward: ForwardPass) -> Tensor:
        """Computes the second half of the layer, the experts: maps x [T, H] to [T, H]."""
        return x + self.moe(self.post_norm(x), forward.ops, forward.routing)


class FusedLayers(Protocol):
    """FusedLayers compute what a decoder's layers compute one after the other, in fewer and larger operations.

    Their routers take part in the routing as those of the layers do.
    """

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
    norm: Norm
    head: Weight  # [V, H]
    head_bias: Tensor | None = None  # [V]
    fused: FusedLayers | None = None  # None: the layers run one after the other, which is the reference of all others

    def forward(self, batch: ForwardBatch, cache: KVCache) -> Tensor:
        """Returns the logits [R, V] float32 of batch.logit_rows; then the cache holds the batch's keys and values."""
        return self.logits(self.hidden(batch, cache))

    def hidden(self, batch: ForwardBatch, cache: KVCache) -> Tensor:
        """Does what `forward` does up to the last layer, and returns hidden states [R, H].

        A caller that needs the logits of a few rows at a time gives them to `logits` piece by piece.
        """
        return self.states(batch, cache)[0][batch.logit_rows]

    def states(self, batch: ForwardBatch, cache: KVCache) -> tuple[Tensor, Routes | None]:
        """Computes the batch into the cache.

        Returns the states [T, H] of all its tokens behind the last layer, and the experts that they were sent to; None
        stands for these where no layer has a choice.
        """
        x = self.embedding(batch.tokens)  # [T, H]
        plans = {window: self.ops.plan_attention(batch, cache, window) for window in self.config.windows()}
        forward = ForwardPass(self.ops, plans, self.rotary.at(batch.positions), Routing(batch.addends))
        if self.fused is not None:
            x = self.fused(x, cache, forward)
        else:
            for layer, pages in zip(self.layers, cache.layers, strict=True):
                x = layer(x, pages, forward)
        return x, forward.routing.routes(self.config.num_experts)

    def logits(self, hidden: Tensor) -> Tensor:
        """Maps hidden states [R, H] to logits [R, V] float32."""
        if not hidden.shape[0]:  # a chunk that does not end its prompt
            return hidden.new_empty(0, self.config.vocab_size, dtype=torch.float32)
        logits = self.ops.linear(self.norm(hidden), self.head).float()
        logits = logits if self.head_bias is None else logits + self.head_bias
        return logits if self.config.logits_scaling == 1 else logits / self.config.logits_scaling

    def matrices(self) -> Iterator[Weight]:
        """Yields all matrices that tokens are multiplied with, except the routers."""
        for layer in self.layers:
            yield from (layer.attention.qkv, layer.attention.o, *layer.moe.experts.gate_up, *layer.moe.experts.down)
            if layer.moe.shared is not None:
                yield from (*layer.moe.shared.experts.gate_up, *layer.moe.shared.experts.down)
        yield self.head

    @property
    def activation_dtype(self) -> torch.dtype:
        """The KV cache has this dtype, too."""
        return self.precision.activations

    @property
    def weight_bytes(self) -> int:
        """Counts the bytes that the weights take as they are held; a table that is also the head counts once."""
        others = [self.embedding.table, self.head_bias, *_norm_tensors(self.norm)]
        for layer in self.layers:
            others += _small_tensors(layer)
        twice = self.head.nbytes if self.head is self.embedding.table else 0
        small = sum(tensor.nbytes for tensor in others if tensor is not None)
        return small + sum(weight.nbytes for weight in self.matrices()) - twice

    def describe(self) -> str:
        """Returns a line for the log: the size, and how the weights are held and computed."""
        active = "dense" if self.config.dense else f"{_count(self.config.num_active_parameters())} active"
        return (
            f"{_count(self.config.num_parameters())} parameters, {active}, {self.precision.describe()} weights "
            f"({self.weight_bytes / 1e9:.1f} GB), {SHORT[self.activation_dtype]} activations"
        )


def _small_tensors(layer: DecoderLayer) -> list[Tensor | None]:
    """Returns all of a layer that tokens are not multiplied with in a seam, and the routers and gates."""
    attention, moe = layer.attention, layer.moe
    found = [*_norm_tensors(layer.input_norm), *_norm_tensors(layer.post_norm)]
    found += [attention.qkv_bias, attention.o_bias, attention.sinks]
    found += [norm.weight for norm in (attention.q_norm, attention.k_norm) if norm is not None]
    found += [moe.experts.gate_up_bias, moe.experts.down_bias]
    found += [] if moe.router is None else [moe.router.weight, moe.router.bias]
    return found + ([] if moe.shared is None else [moe.shared.gate])


def _norm_tensors(norm: Norm) -> list[Tensor | None]:
    return [norm.weight, norm.bias] if isinstance(norm, LayerNorm) else [norm.weight]


def _count(parameters: int) -> str:
    return f"{parameters / 1e9:.1f}B" if parameters >= 1e9 else f"{parameters / 1e6:.0f}M"
