"""Runs the layers of a model on a GPU through the Triton kernels alone, and never asks the host.

    x, normed -> qkv -> rotate, store -> attend -> o -> + x, norm, route -> experts -> + x, next norm -> x, normed

The kernel that has a row at hand also adds it to the residual and applies the norm behind that, across the borders of
layers. Everything reads its sizes from shapes and its contents from the device, so that a CUDA graph can replay it.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain

import torch
from torch import Tensor

from octavo.model.decoder import DecoderLayer, ForwardPass
from octavo.model.kernels.gpu import experts
from octavo.model.kernels.gpu.attention import attend
from octavo.model.kernels.gpu.attention_plan import GpuPlan
from octavo.model.kernels.gpu.combine import Biases, combine
from octavo.model.kernels.gpu.configs import Config, choose
from octavo.model.kernels.gpu.gather import gather
from octavo.model.kernels.gpu.linear import linear
from octavo.model.kernels.gpu.norm import Delta, add_norm
from octavo.model.kernels.gpu.rotary import Heads, rotate_and_store
from octavo.model.kernels.gpu.router import Routed, route
from octavo.model.kernels.gpu.sort import sort_pairs
from octavo.model.kv_cache import KVCache, LayerCache
from octavo.model.layers import RMSNorm
from octavo.model.moe import Router
from octavo.model.ops.attention import Plan
from octavo.model.routes import Routing
from octavo.model.weights.forms import ExpertWeights
from octavo.model.weights.stack import Stack, StackedWeight

_TAKEN = (Tensor, StackedWeight)  # weights that the kernels multiply by
FEW = 2  # Up to so many tokens nothing is sorted, since hardly any expert has two of them.
TABLE_EXPERTS, TABLE_TOP_K = 8, 2  # of the model whose layers the table of configurations was tuned with


@dataclass(frozen=True, slots=True)
class PagedPass(Plan):
    """A PagedPass is the Plan of the kernels of attention."""

    attention: GpuPlan
    slots: Tensor  # [T], the batch's


@dataclass(frozen=True, slots=True, eq=False)
class GpuLayer:
    """A GpuLayer is a layer's weights in the form that the kernels take."""

    input_norm: Tensor  # [H]
    qkv: Tensor | StackedWeight  # [(Hq + 2 Hkv) * D, H]
    o: Tensor | StackedWeight  # [H, Hq * D]
    heads: Heads
    post_norm: Tensor  # [H]
    router: Router | None  # None in a dense layer
    gate_up: Stack  # E matrices [2I, H]
    down: Stack  # E matrices [H, I]; combine adds its bias
    o_bias: Tensor | None = None  # [H]
    sinks: Tensor | None = None  # [Hq] float32
    scale: float | None = None  # of attention's scores; None: D ** -0.5
    window: int | None = None
    residual: float = 1.0  # factor of what attention adds to the residual stream

    @classmethod
    def of(cls, layer: DecoderLayer, eps: float) -> "GpuLayer | None":
        """Returns None for a layer that the kernels do not take, which `_is_fused` tells."""
        attention, held = layer.attention, layer.moe.experts
        if not _is_fused(layer) or not (isinstance(attention.qkv, _TAKEN) and isinstance(attention.o, _TAKEN)):
            return None
        q_norm, k_norm = (None if norm is None else norm.weight for norm in (attention.q_norm, attention.k_norm))
        return cls(
            input_norm=layer.input_norm.weight,
            qkv=attention.qkv,
            o=attention.o,
            heads=Heads(
                attention.num_heads, attention.num_kv_heads, attention.qkv_bias, q_norm, k_norm, eps, attention.clip
            ),
            post_norm=layer.post_norm.weight,
            router=layer.moe.router,
            gate_up=Stack.of(held.gate_up, held.gate_up_bias, held.activation),
            down=Stack.of(held.down, held.down_bias),
            o_bias=attention.o_bias,
            sinks=attention.sinks,
            scale=attention.scale,
            window=attention.window,
            residual=layer.residual,
        )


def _is_fused(layer: DecoderLayer) -> bool:
    """Returns whether the kernels take a layer, except for its attention's matrices.

    They do not take norms with a mean, routers that pick with jitter, and shared experts.
    """
    router = layer.moe.router
    return (
        isinstance(layer.input_norm, RMSNorm)
        and isinstance(layer.post_norm, RMSNorm)
        and layer.moe.shared is None
        and (router is None or router.jitter is None)
        and are_taken(layer.moe.experts)
    )


def are_taken(experts: ExpertWeights) -> bool:
    """Returns whether the kernels take experts: not those of a CPU's kinds, nor a down with inputs in another order."""
    if not all(isinstance(matrix, _TAKEN) for matrix in (*experts.gate_up, *experts.down)):
        return False
    return not any(isinstance(matrix, StackedWeight) and "order" in matrix.tensors() for matrix in experts.down)


@dataclass(frozen=True, slots=True, eq=False)
class GpuDecoder:
    """A GpuDecoder computes what a model's layers compute one after the other; these are its reference."""

    layers: tuple[GpuLayer, ...]
    eps: float  # for the norms
    arch: str  # the device's name in configs.choose

    @classmethod
    def of(cls, layers: Iterable[DecoderLayer], eps: float, arch: str) -> "GpuDecoder | None":
        """Returns None if the kernels do not take the weights of every layer."""
        taken = [GpuLayer.of(layer, eps) for layer in layers]
        fused = tuple(layer for layer in taken if layer is not None)
        return cls(fused, eps, arch) if len(fused) == len(taken) else None

    def __call__(self, x: Tensor, cache: KVCache, forward: ForwardPass) -> Tensor:
        """Maps x [T, H], the embedded tokens, to [T, H], before the last norm; forward.plans are PagedPasses."""
        normed: Tensor | None = add_norm(x, None, self.layers[0].input_norm, self.eps)[1]
        for layer, pages, following in zip(self.layers, cache.layers, self._following(), strict=True):
            assert normed is not None
            delta = self._attention(layer, normed, pages, forward)
            x, normed = self._experts(layer, self._route(layer, x, delta, forward.routing), following)
        return x

    def _following(self) -> Iterator[Tensor | None]:
        """Yields for each layer the norm of the next one, and None for the last layer."""
        return chain((layer.input_norm for layer in self.layers[1:]), (None,))

    def _attention(self, layer: GpuLayer, normed: Tensor, pages: LayerCache, forward: ForwardPass) -> Delta:
        plan = forward.plans[layer.window]
        assert isinstance(plan, PagedPass)
        qkv = linear(normed, layer.qkv, self.arch)  # [T, (Hq + 2 Hkv) * D]
        queries = rotate_and_store(qkv, forward.rotation, plan.slots, pages, layer.heads)  # [T, Hq, D]
        attended = attend(queries, pages, plan.attention, layer.sinks, layer.scale)
        return Delta(linear(attended, layer.o, self.arch), layer.o_bias, layer.residual)

    def _route(self, layer: GpuLayer, x: Tensor, delta: Delta, routing: Routing) -> Routed:
        if layer.router is not None:
            routed = route(x, delta, layer.post_norm, self.eps, layer.router, routing.addend())
            routing.tell(routed.ids, routed.weights)
            return routed
        x, normed = add_norm(x, delta, layer.post_norm, self.eps)
        always = x.new_zeros(x.shape[0], 1, dtype=torch.int32)
        return Routed(x, normed, x.new_ones(x.shape[0], 1, dtype=torch.float32), always)

    def _experts(self, layer: GpuLayer, routed: Routed, following: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Adds the experts' outputs to x [T, H]; returns the sum and its norm by `following`."""
        partials = partial_outputs(routed.normed, routed.ids, layer.gate_up, layer.down, self.arch)
        biases = None if layer.down.bias is None else Biases(routed.ids, layer.down.bias)
        return combine(partials, routed.weights, routed.x, following, self.eps, biases)


def partial_outputs(normed: Tensor, ids: Tensor, gate_up: Stack, down: Stack, arch: str) -> Tensor:
    """Maps normed [T, H], ids [T, k] int32 to each pair's output, in S parts yet to be added: [S, T * k, H]."""
    tokens, top_k = ids.shape
    op = "few" if tokens <= FEW else "experts"
    config = config_for(f"{op}.gate_up", gate_up, tokens, top_k, arch)
    pairs = ids.view(-1) if tokens <= FEW else sort_pairs(ids, gate_up.quants.shape[0], config.tokens)
    if gate_up.order is not None:
        normed = gather(normed, ids, gate_up.order)  # a row for each pair
    inner = experts.gate_up(normed, gate_up, pairs, top_k if gate_up.order is None else 1, config)  # [T * k, I]
    # Both products go over the same tiles of pairs, so a tile has the same number of them.
    config = replace(config_for(f"{op}.down", down, tokens, top_k, arch), tokens=config.tokens)
    return experts.down(inner, down, pairs, config)


def config_for(op: str, stack: Stack, tokens: int, top_k: int, arch: str) -> Config:
    """Returns the table's line for a product with these weights. Raises ModelError.

    The table is for two of eight experts. Any other layer looks up the number of tokens with which those would have as
    many pairs for each expert, and at most its own tokens, since an expert has one pair of each of them at most.
    """
    alike = -(-tokens * top_k * TABLE_EXPERTS // (stack.quants.shape[0] * TABLE_TOP_K))
    return choose(op, stack.kind, stack.shape, min(tokens, alike), arch)
