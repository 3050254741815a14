"""Runs the layers of a model on a CPU; a layer of quantised weights takes two calls of the C kernels."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from octavo.model.decoder import Attention, DecoderLayer, ForwardPass
from octavo.model.kernels.cpu.library import Library
from octavo.model.kernels.cpu.ops import CpuPlan
from octavo.model.kernels.cpu.structs import AttentionStruct, ExpertsStruct, PagesStruct, RotationStruct, WeightStruct
from octavo.model.kv_cache import KVCache, LayerCache
from octavo.model.layers import RMSNorm
from octavo.model.moe import MoEBlock
from octavo.model.weights.tiles import TiledWeight


@dataclass(frozen=True, slots=True, eq=False)
class CpuLayer:
    """A CpuLayer computes in place what its DecoderLayer computes."""

    plain: DecoderLayer  # owns the weights that the structs point into
    kernels: Library
    attention: AttentionStruct
    experts: ExpertsStruct

    @classmethod
    def of(cls, layer: DecoderLayer, kernels: Library) -> "CpuLayer | None":
        """Returns None if any matrix is not a TiledWeight, for instance because its values are too large for these."""
        attention, moe = layer.attention, layer.moe
        matrices = (attention.qkv, attention.o, *moe.experts.gate_up, *moe.experts.down)
        if not layer.is_plain or not all(isinstance(matrix, TiledWeight) for matrix in matrices):
            return None
        assert isinstance(layer.input_norm, RMSNorm) and isinstance(layer.post_norm, RMSNorm)
        return cls(layer, kernels, attention_struct(attention, layer.input_norm), experts_struct(moe, layer.post_norm))

    def __call__(self, x: Tensor, pages: LayerCache, forward: ForwardPass) -> Tensor:
        """Maps x [T, H] to [T, H] in place."""
        plan = forward.plans[self.plain.attention.window]
        assert isinstance(plan, CpuPlan)
        rotation = RotationStruct.of(forward.rotation)
        self.kernels.attention_layer(x, self.attention, plan.struct, rotation, PagesStruct.of(pages))
        self.kernels.experts_layer(x, self.experts)
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


def attention_struct(attention: Attention, norm: RMSNorm) -> AttentionStruct:
    """Returns the struct of tiled weights and of the norm before them; it is valid for as long as both live."""
    matrices = WeightStruct.of(attention.qkv), WeightStruct.of(attention.o)
    heads = attention.num_heads, attention.num_kv_heads, attention.head_dim
    return AttentionStruct(norm.weight.data_ptr(), *matrices, *heads, norm.root_eps.item() ** 2)


def experts_struct(moe: MoEBlock, norm: RMSNorm) -> ExpertsStruct:
    """Returns the struct of tiled experts, their router and the norm before them, valid for as long as all live."""
    experts = ExpertsStruct.of(moe.experts, 1 if moe.router is None else moe.router.top_k)
    experts.norm = norm.weight.data_ptr()
    experts.eps = norm.root_eps.item() ** 2
    experts.router = None if moe.router is None else moe.router.weight.data_ptr()
    return experts
