"""Runs the layers of a model on a CPU; a half of a layer with quantised weights is one call of the C kernels."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from octavo.model.decoder import Attention, DecoderLayer, ForwardPass
from octavo.model.kernels.cpu.library import Library
from octavo.model.kernels.cpu.ops import CpuPlan
from octavo.model.kernels.cpu.structs import (
    AttentionStruct,
    ExpertsStruct,
    PagesStruct,
    RotationStruct,
    WeightStruct,
    pointer_to,
)
from octavo.model.kv_cache import KVCache, LayerCache
from octavo.model.layers import Norm, RMSNorm
from octavo.model.moe import MoEBlock
from octavo.model.routes import Routing
from octavo.model.weights.tiles import TiledWeight


class Room(Routing):
    """A Room has the choices of all routers in one piece: allocating those of each layer takes longer than routing."""

    def __init__(self, addends: Tensor | None, routers: int, tokens: int, top_k: int) -> None:
        super().__init__(addends)
        self.ids = torch.empty(routers, tokens, top_k, dtype=torch.int64)
        self.weights = torch.empty(routers, tokens, top_k)
        self._pairs = tokens * top_k
        self._starts = self.ids.data_ptr(), self.weights.data_ptr()

    def take(self) -> tuple[int, int]:
        """Returns the addresses to which the next router writes its ids [T, k] and weights [T, k], as it must."""
        at = self.heard * self._pairs
        self.heard += 1
        return self._starts[0] + at * self.ids.itemsize, self._starts[1] + at * self.weights.itemsize

    def tell(self, ids: Tensor, weights: Tensor) -> None:
        """Copies the choice of a router that the kernels do not take."""
        self.ids[self.heard], self.weights[self.heard] = ids, weights
        self.heard += 1


@dataclass(frozen=True, slots=True, eq=False)
class CpuLayer:
    """A CpuLayer computes what its DecoderLayer computes, and leaves the half to it that the kernels do not take."""

    plain: DecoderLayer  # owns the weights that the structs point into
    kernels: Library
    attention: AttentionStruct | None  # None: attention runs as it is
    experts: ExpertsStruct | None  # None: the experts run as they are

    @classmethod
    def of(cls, layer: DecoderLayer, kernels: Library) -> "CpuLayer | None":
        """Returns None if the kernels take neither half."""
        attention = attention_struct(layer.attention, layer.input_norm, layer.residual)
        experts = experts_struct(layer.moe, layer.post_norm)
        return None if attention is None and experts is None else cls(layer, kernels, attention, experts)

    def __call__(self, x: Tensor, pages: LayerCache, forward: ForwardPass) -> Tensor:
        """Maps x [T, H] to [T, H]; x may be overwritten. forward.routing is a Room."""
        x = self._attend(x, pages, forward)
        routing, routes = forward.routing, self.plain.moe.router is not None
        if self.experts is None or (routes and routing.addends is not None):
            return self.plain.mix(x, forward)  # The router of the kernels takes no addend.
        if routes:
            assert isinstance(routing, Room)
            self.kernels.experts_layer_into(x, self.experts, routing.take())
        else:
            self.kernels.experts_layer(x, self.experts)
        return x

    def _attend(self, x: Tensor, pages: LayerCache, forward: ForwardPass) -> Tensor:
        if self.attention is None:
            return self.plain.attend(x, pages, forward)
        plan = forward.plans[self.plain.attention.window]
        assert isinstance(plan, CpuPlan)
        rotation = RotationStruct.of(forward.rotation)
        self.kernels.attention_layer(x, self.attention, plan.struct, rotation, PagesStruct.of(pages))
        return x


@dataclass(frozen=True, slots=True, eq=False)
class CpuDecoder:
    """A CpuDecoder computes what a model's layers compute; a layer that the kernels do not take runs as it is."""

    layers: tuple[CpuLayer | DecoderLayer, ...]
    routers: int  # how many of the layers choose
    top_k: int  # experts that each of these chooses

    @classmethod
    def of(cls, layers: Iterable[DecoderLayer], kernels: Library) -> "CpuDecoder | None":
        """Returns None if the kernels take none of the layers."""
        plain = tuple(layers)
        fused = tuple(CpuLayer.of(layer, kernels) or layer for layer in plain)
        chosen = [layer.moe.router.top_k for layer in plain if layer.moe.router is not None]
        if not any(isinstance(layer, CpuLayer) for layer in fused):
            return None
        return cls(fused, len(chosen), max(chosen, default=0))

    def __call__(self, x: Tensor, cache: KVCache, forward: ForwardPass) -> Tensor:
        """Maps x [T, H] to [T, H]; x may be overwritten."""
        room = Room(forward.routing.addends, self.routers, x.shape[0], self.top_k)
        within = replace(forward, routing=room)
        for layer, pages in zip(self.layers, cache.layers, strict=True):
            x = layer(x, pages, within)
        forward.routing.tell_all(room.ids, room.weights)
        return x


def attention_struct(attention: Attention, norm: Norm, residual: float = 1.0) -> AttentionStruct | None:
    """Returns the struct of an attention and of the norm before it; it is valid for as long as both live.

    It is None where the kernels do not take these: a matrix that is not tiled, for instance because its values are too
    large for that, or a norm of another kind.
    """
    tiled = isinstance(attention.qkv, TiledWeight) and isinstance(attention.o, TiledWeight)
    if not isinstance(norm, RMSNorm) or not tiled:
        return None
    q_norm, k_norm = attention.q_norm, attention.k_norm
    return AttentionStruct(
        norm=norm.weight.data_ptr(),
        qkv=WeightStruct.of(attention.qkv),
        o=WeightStruct.of(attention.o),
        qkv_bias=pointer_to(attention.qkv_bias),
        o_bias=pointer_to(attention.o_bias),
        q_norm=None if q_norm is None else pointer_to(q_norm.weight),
        k_norm=None if k_norm is None else pointer_to(k_norm.weight),
        sinks=pointer_to(attention.sinks),
        num_heads=attention.num_heads,
        num_kv_heads=attention.num_kv_heads,
        head_dim=attention.head_dim,
        together=q_norm is not None and q_norm.weight.shape[0] != attention.head_dim,
        eps=_eps(norm),
        heads_eps=0 if q_norm is None else _eps(q_norm),
        clip=attention.clip or 0,
        scale=attention.head_dim**-0.5 if attention.scale is None else attention.scale,
        residual=residual,
    )


def experts_struct(moe: MoEBlock, norm: Norm) -> ExpertsStruct | None:
    """Returns the struct of experts, their router and the norm before them; it is valid for as long as all live.

    It is None where the kernels do not take these, among them a shared expert and the sparse mixer.
    """
    mixes = moe.router is not None and moe.router.jitter is not None
    if not isinstance(norm, RMSNorm) or moe.shared is not None or mixes or not ExpertsStruct.takes(moe.experts):
        return None
    experts = ExpertsStruct.of(moe.experts, 1 if moe.router is None else moe.router.top_k)
    experts.norm = norm.weight.data_ptr()
    experts.eps = _eps(norm)
    if moe.router is not None:
        experts.route(moe.router)
    return experts


def _eps(norm: RMSNorm) -> float:
    return float(norm.root_eps.item() ** 2)
