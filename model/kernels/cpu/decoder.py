"""FusedLayer: a decoder layer of int8 or int4 weights, as one call of the C kernels for each of its halves."""

from dataclasses import dataclass, replace

from torch import Tensor

from octavo.model.decoder import Attention, Decoder, DecoderLayer, ForwardPass
from octavo.model.kernels.cpu.library import Library
from octavo.model.kernels.cpu.structs import AttentionStruct, ExpertsStruct, PagesStruct, RotationStruct, WeightStruct
from octavo.model.kv_cache import LayerCache
from octavo.model.layers import RMSNorm
from octavo.model.moe import MoEBlock, Observe
from octavo.model.weights.tiles import GroupedWeight


@dataclass(frozen=True, slots=True, eq=False)
class FusedLayer:
    """What DecoderLayer computes, in place."""

    plain: DecoderLayer  # whose weights the structs point into
    kernels: Library
    attention: AttentionStruct
    experts: ExpertsStruct

    @classmethod
    def of(cls, layer: DecoderLayer, kernels: Library) -> "FusedLayer | None":
        """None for a layer with matrices of other types: where a weight is too large for them, for one."""
        attention, moe = layer.attention, layer.moe
        matrices = (attention.qkv, attention.o, *moe.experts.gate_up, *moe.experts.down)
        if not all(isinstance(matrix, GroupedWeight) for matrix in matrices):
            return None
        return cls(layer, kernels, attention_struct(attention, layer.input_norm), experts_struct(moe, layer.post_norm))

    def __call__(self, x: Tensor, pages: LayerCache, forward: ForwardPass, observe: Observe | None = None) -> Tensor:
        rotation = RotationStruct.of(forward.rotation)
        self.kernels.attention_layer(x, self.attention, forward.plan.struct, rotation, PagesStruct.of(pages))
        ids = self.kernels.experts_layer(x, self.experts)
        if observe is not None and self.plain.moe.router is not None:
            observe(self.plain.moe.layer, ids)
        return x


def attention_struct(attention: Attention, norm: RMSNorm) -> AttentionStruct:
    """Of grouped weights, and the norm before them; valid for as long as both live."""
    matrices = WeightStruct.of(attention.qkv), WeightStruct.of(attention.o)
    heads = attention.num_heads, attention.num_kv_heads, attention.head_dim
    return AttentionStruct(norm.weight.data_ptr(), *matrices, *heads, norm.root_eps.item() ** 2)


def experts_struct(moe: MoEBlock, norm: RMSNorm) -> ExpertsStruct:
    """As attention_struct."""
    experts = ExpertsStruct.of(moe.experts, 1 if moe.router is None else moe.router.top_k)
    experts.norm = norm.weight.data_ptr()
    experts.eps = norm.root_eps.item() ** 2
    experts.router = None if moe.router is None else moe.router.weight.data_ptr()
    return experts


def fuse(model: Decoder, kernels: Library) -> Decoder:
    """The same model; its layers run fused where they can."""
    return replace(model, layers=tuple(replace(layer, fused=FusedLayer.of(layer, kernels)) for layer in model.layers))
