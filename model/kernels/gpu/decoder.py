"""Runs the layers of a model on a GPU through the Triton kernels alone, and never asks the host.

    x, normed -> qkv -> rotate, store -> attend -> o -> + x, norm, route -> experts -> + x, next norm -> x, normed

The kernel that has a row at hand also adds it to the residual and applies the norm behind that, across the borders of
layers. Everything reads its sizes from shapes and its contents from the device, so that a CUDA graph can replay it.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.model.decoder import DecoderLayer, ForwardPass
from octavo.model.kernels.gpu import experts
from octavo.model.kernels.gpu.attention import attend
from octavo.model.kernels.gpu.attention_plan import GpuPlan
from octavo.model.kernels.gpu.combine import combine
from octavo.model.kernels.gpu.configs import Config, choose
from octavo.model.kernels.gpu.norm import add_norm
from octavo.model.kernels.gpu.rotary import rotate_and_store
from octavo.model.kernels.gpu.router import Routed, route
from octavo.model.kernels.gpu.sort import sort_pairs
from octavo.model.kv_cache import KVCache, LayerCache
from octavo.model.ops.attention import Plan
from octavo.model.weights.stack import Stack, StackedWeight

FEW = 2  # Up to so many tokens nothing is sorted, since hardly any expert has two of them.


@dataclass(frozen=True, slots=True)
class PagedPass(Plan):
    """A PagedPass is the Plan of the kernels of attention."""

    attention: GpuPlan
    slots: Tensor  # [T], the batch's


@dataclass(frozen=True, slots=True, eq=False)
class GpuLayer:
    """A GpuLayer is a layer's weights in the form that the kernels take."""

    input_norm: Tensor  # [H]
    qkv: Tensor  # [(Hq + 2 Hkv) * D, H]
    o: Tensor  # [H, Hq * D]
    heads: tuple[int, int]  # Hq, Hkv
    window: int | None
    post_norm: Tensor  # [H]
    router: Tensor | None  # [E, H]; None in a dense layer
    top_k: int
    gate_up: Stack  # E matrices [2I, H]
    down: Stack  # E matrices [H, I]

    @classmethod
    def of(cls, layer: DecoderLayer) -> "GpuLayer | None":
        """Returns None for weights that the kernels do not take: quantised attention, or experts of a CPU's kinds."""
        attention, router, held = layer.attention, layer.moe.router, layer.moe.experts
        if not layer.is_plain or not isinstance(attention.qkv, Tensor) or not isinstance(attention.o, Tensor):
            return None
        if not all(isinstance(matrix, Tensor | StackedWeight) for matrix in (*held.gate_up, *held.down)):
            return None
        return cls(
            input_norm=layer.input_norm.weight,
            qkv=attention.qkv,
            o=attention.o,
            heads=(attention.num_heads, attention.num_kv_heads),
            window=attention.window,
            post_norm=layer.post_norm.weight,
            router=None if router is None else router.weight,
            top_k=1 if router is None else router.top_k,
            gate_up=Stack.of(held.gate_up),
            down=Stack.of(held.down),
        )


@dataclass(frozen=True, slots=True, eq=False)
class GpuDecoder:
    """A GpuDecoder computes what a model's layers compute one after the other; these are its reference."""

    layers: tuple[GpuLayer, ...]
    eps: float  # for the norms
    arch: str  # the device's name in configs.choose

    @classmethod
    def of(cls, layers: Iterable[DecoderLayer], eps: float, arch: str) -> "GpuDecoder | None":
        """Returns None if the kernels do not take the weights of every layer."""
        taken = [GpuLayer.of(layer) for layer in layers]
        fused = tuple(layer for layer in taken if layer is not None)
        return cls(fused, eps, arch) if len(fused) == len(taken) else None

    def __call__(self, x: Tensor, cache: KVCache, forward: ForwardPass) -> Tensor:
        """Maps x [T, H], the embedded tokens, to [T, H], before the last norm; forward.plans are PagedPasses."""
        normed: Tensor | None = add_norm(x, None, self.layers[0].input_norm, self.eps)[1]
        for layer, pages, following in zip(self.layers, cache.layers, self._following(), strict=True):
            assert normed is not None
            delta = self._attention(layer, normed, pages, forward)
            x, normed = self._experts(layer, self._route(layer, x, delta), following)
        return x

    def _following(self) -> Iterator[Tensor | None]:
        """Yields for each layer the norm of the next one, and None for the last layer."""
        return chain((layer.input_norm for layer in self.layers[1:]), (None,))

    def _attention(self, layer: GpuLayer, normed: Tensor, pages: LayerCache, forward: ForwardPass) -> Tensor:
        plan = forward.plans[layer.window]
        assert isinstance(plan, PagedPass)
        qkv = F.linear(normed, layer.qkv)  # [T, (Hq + 2 Hkv) * D]
        queries = rotate_and_store(qkv, forward.rotation, plan.slots, pages, layer.heads)  # [T, Hq, D]
        return F.linear(attend(queries, pages, plan.attention), layer.o)  # [T, H]

    def _route(self, layer: GpuLayer, x: Tensor, delta: Tensor) -> Routed:
        if layer.router is not None:
            return route(x, delta, layer.post_norm, self.eps, layer.router, layer.top_k)
        x, normed = add_norm(x, delta, layer.post_norm, self.eps)
        always = x.new_zeros(x.shape[0], 1, dtype=torch.int32)
        return Routed(x, normed, x.new_ones(x.shape[0], 1, dtype=torch.float32), always)

    def _experts(self, layer: GpuLayer, routed: Routed, following: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Adds the experts' outputs to x [T, H]; returns the sum and its norm by `following`."""
        partials = partial_outputs(routed.normed, routed.ids, layer.gate_up, layer.down, self.arch)
        return combine(partials, routed.weights, routed.x, following, self.eps)


def partial_outputs(normed: Tensor, ids: Tensor, gate_up: Stack, down: Stack, arch: str) -> Tensor:
    """Maps normed [T, H], ids [T, k] int32 to each pair's output, in S parts yet to be added: [S, T * k, H]."""
    tokens, top_k = ids.shape
    op = "few" if tokens <= FEW else "experts"
    config = config_for(f"{op}.gate_up", gate_up, tokens, arch)
    pairs = ids.view(-1) if tokens <= FEW else sort_pairs(ids, gate_up.quants.shape[0], config.tokens)
    inner = experts.gate_up(normed, gate_up, pairs, top_k, config)  # [T * k, I]
    # Both products go over the same tiles of pairs, so a tile has the same number of them.
    config = replace(config_for(f"{op}.down", down, tokens, arch), tokens=config.tokens)
    return experts.down(inner, down, pairs, config)


def config_for(op: str, stack: Stack, tokens: int, arch: str) -> Config:
    """Returns the table's line for a product with these weights. Raises ModelError."""
    return choose(op, stack.kind, stack.shape, tokens, arch)
