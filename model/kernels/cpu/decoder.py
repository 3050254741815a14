"""Runs the layers of a model on a CPU; a half of a layer with quantised weights is one call of the C kernels."""

from collections.abc import Iterable
from dataclasses import dataclass

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
from octavo.model.weights.tiles import TiledWeight


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
        """Maps x [T, H] to [T, H]; x may be overwritten."""
        x = self._attend(x, pages, forward)
        if self.experts is None:
            return self.plain.mix(x, forward)
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

    @classmethod
    def of(cls, layers: Iterable[DecoderLayer], kernels: Library) -> "CpuDecoder | None":
        """Returns None if the kernels take none of the layers."""
        fused = tuple(CpuLayer.of(layer, kernels) or layer for layer in layers)
        return cls(fused) if any(isinstance(layer, CpuLayer) for layer in fused) else None

    def __call__(self, x: Tensor, cache: KVCache, forward: ForwardPass) -> Tensor:
        """Maps x [T, H] to [T, H]; x may be overwritten."""
        for layer, pages in zip(self.layers, cache.layers, strict=True):
            x = layer(x, pages, forward)
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
