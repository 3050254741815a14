"""FusedLayer: a decoder layer of int8 or int4 weights, as one call of the C kernels for each of its halves."""

import ctypes
from dataclasses import dataclass, replace

from torch import Tensor

from model.kernels.cpu.library import Library
from model.kernels.cpu.structs import ExpertsStruct
from model.kv_cache import LayerCache
from model.mixtral import DecoderLayer, Mixtral, Step
from model.moe import Observe
from model.quantization import GroupedWeight


@dataclass(frozen=True, slots=True, eq=False)
class FusedLayer:
    """What DecoderLayer computes, in place."""

    plain: DecoderLayer  # whose weights `experts` points into
    kernels: Library
    experts: ExpertsStruct

    @classmethod
    def of(cls, layer: DecoderLayer, kernels: Library) -> "FusedLayer | None":
        """None for a layer with matrices of other types: where a weight is too large for them, for one."""
        moe, norm = layer.moe, layer.post_norm
        matrices = (layer.attention.qkv, layer.attention.o, *moe.experts.gate_up, *moe.experts.down)
        if not all(isinstance(matrix, GroupedWeight) for matrix in matrices):
            return None
        experts = ExpertsStruct.of(moe.experts, 1 if moe.router is None else moe.router.top_k)
        experts.norm = norm.weight.data_ptr()
        experts.eps = ctypes.c_float(norm.root_eps.item() ** 2)
        experts.router = None if moe.router is None else moe.router.weight.data_ptr()
        return cls(layer, kernels, experts)

    def __call__(self, x: Tensor, pages: LayerCache, step: Step, observe: Observe | None = None) -> Tensor:
        plain = self.plain
        x += plain.attention(plain.input_norm(x), pages, step)
        ids = self.kernels.experts_layer(x, self.experts)
        if observe is not None and plain.moe.router is not None:
            observe(plain.moe.layer, ids)
        return x


def fuse(model: Mixtral, kernels: Library) -> Mixtral:
    """The same model; its layers run fused where they can."""
    return replace(model, layers=tuple(replace(layer, fused=FusedLayer.of(layer, kernels)) for layer in model.layers))
