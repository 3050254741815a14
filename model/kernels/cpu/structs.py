"""Describes the structs of octavo.h to ctypes; they point into tensors and weights, and do not own them."""

from ctypes import POINTER, Structure, c_float, c_int8, c_int64, c_void_p
from math import inf

import torch
from torch import Tensor

from octavo.model.batch import ForwardBatch
from octavo.model.kv_cache import LayerCache
from octavo.model.layers import Rotation
from octavo.model.moe import Router
from octavo.model.weights.forms import ExpertWeights, Weight
from octavo.model.weights.kinds import Kind, Offset, Scale
from octavo.model.weights.tiles import TiledWeight, TileLayout

SCALES = tuple(Scale)  # in the order of octavo.h
OFFSETS = tuple(Offset)
NO_VALUES = (0,) * 16


def pointer_to(tensor: Tensor | None) -> int | None:
    """Returns the address of a contiguous tensor, and NULL for none."""
    assert tensor is None or tensor.is_contiguous()
    return None if tensor is None else tensor.data_ptr()


class KindStruct(Structure):
    """Describes `Kind` of octavo.h to ctypes."""

    _fields_ = (
        ("bits", c_int64),
        ("group", c_int64),
        ("scale", c_int64),
        ("offset", c_int64),
        ("shift", c_int64),
        ("values", c_int8 * 16),
    )

    @classmethod
    def of(cls, kind: Kind) -> "KindStruct":
        values = (c_int8 * 16)(*(kind.values or NO_VALUES))
        scale, offset = SCALES.index(kind.scale), OFFSETS.index(kind.offset)
        return cls(kind.bits, kind.group, scale, offset, kind.shift, values)


class WeightStruct(Structure):
    """Describes `Weight` of octavo.h to ctypes."""

    _fields_ = (
        ("panels", c_void_p),
        ("block", c_int64),
        ("outputs", c_int64),
        ("inputs", c_int64),
        ("terms", c_int64),
        ("kind", KindStruct),
        ("order", c_void_p),
    )

    @classmethod
    def of(cls, weight: Weight) -> "WeightStruct":
        """Describes a weight, which must be a tiled one; the struct is valid for as long as the weight lives."""
        assert isinstance(weight, TiledWeight)
        outputs, inputs = weight.shape
        tiles, kind = weight.memory.data_ptr(), KindStruct.of(weight.kind)
        return cls(tiles, weight.layout.block, outputs, inputs, weight.terms, kind, pointer_to(weight.order))


class PassStruct(Structure):
    """Describes `Pass` of octavo.h to ctypes."""

    _fields_ = (
        ("tokens", c_int64),
        ("sequences", c_int64),
        ("slots", c_void_p),
        ("q_starts", c_void_p),
        ("kv_lens", c_void_p),
        ("block_table", c_void_p),
        ("table_width", c_int64),
        ("block_size", c_int64),
        ("window", c_int64),
    )

    @classmethod
    def of(cls, batch: ForwardBatch, block_size: int, window: int | None) -> "PassStruct":
        """Describes a batch; the struct is valid for as long as the batch lives."""
        return cls(
            batch.tokens.shape[0],
            batch.kv_lens.shape[0],
            batch.slots.data_ptr(),
            batch.q_starts.data_ptr(),
            batch.kv_lens.data_ptr(),
            batch.block_table.data_ptr(),
            batch.block_table.shape[1],
            block_size,
            window or 0,
        )


class RotationStruct(Structure):
    """Describes `Rotation` of octavo.h to ctypes."""

    _fields_ = (("cos", c_void_p), ("sin", c_void_p))

    @classmethod
    def of(cls, rotation: Rotation) -> "RotationStruct":
        """Describes a rotation; the struct is valid for as long as the rotation lives."""
        return cls(rotation.cos.data_ptr(), rotation.sin.data_ptr())


class HeadsStruct(Structure):
    """Describes `Heads` of octavo.h to ctypes."""

    _fields_ = (
        ("q", c_void_p),
        ("k", c_void_p),
        ("v", c_void_p),
        ("sinks", c_void_p),
        ("q_stride", c_int64),
        ("k_stride", c_int64),
        ("v_stride", c_int64),
        ("num_heads", c_int64),
        ("num_kv_heads", c_int64),
        ("head_dim", c_int64),
        ("scale", c_float),
    )

    @classmethod
    def of(cls, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None) -> "HeadsStruct":
        """Describes q [T, Hq, D], k and v [T, Hkv, D], sinks [Hq], all float32; the struct is valid while they live.

        The heads of a token lie one after the other.
        """
        (_, num_heads, head_dim), num_kv_heads = q.shape, k.shape[1]
        heads = q.data_ptr(), k.data_ptr(), v.data_ptr(), pointer_to(sinks)
        strides = q.stride(0), k.stride(0), v.stride(0)
        return cls(*heads, *strides, num_heads, num_kv_heads, head_dim, head_dim**-0.5)


class PagesStruct(Structure):
    """Describes `Pages` of octavo.h to ctypes."""

    _fields_ = (("keys", c_void_p), ("values", c_void_p))

    @classmethod
    def of(cls, pages: LayerCache) -> "PagesStruct":
        """Describes a layer's cache; the struct is valid for as long as the cache lives."""
        return cls(pages.keys.data_ptr(), pages.values.data_ptr())


class AttentionStruct(Structure):
    """Describes `Attention` of octavo.h to ctypes."""

    _fields_ = (
        ("norm", c_void_p),
        ("qkv", WeightStruct),
        ("o", WeightStruct),
        ("qkv_bias", c_void_p),
        ("o_bias", c_void_p),
        ("q_norm", c_void_p),
        ("k_norm", c_void_p),
        ("sinks", c_void_p),
        ("num_heads", c_int64),
        ("num_kv_heads", c_int64),
        ("head_dim", c_int64),
        ("together", c_int64),
        ("eps", c_float),
        ("heads_eps", c_float),
        ("clip", c_float),
        ("scale", c_float),
        ("residual", c_float),
    )


TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


class SourceStruct(Structure):
    """Describes `Source` of octavo.h to ctypes."""

    _fields_ = (
        ("rows", c_void_p),
        ("type", c_int64),
        ("count", c_int64),
        ("first", c_int64),
        ("tile", c_int64),
        ("stride", c_int64),
    )

    @classmethod
    def all_of(cls, rows: Tensor, first: int, layout: TileLayout) -> "list[SourceStruct]":
        """Describes rows that become the outputs from `first` on; interleaved halves take two sources."""
        if not layout.interleaved:
            return [cls(rows.data_ptr(), TYPES[rows.dtype], len(rows), first, 0, 1)]
        half = layout.shape[0] // 2
        above = rows[: max(0, half - first)]
        below = rows[len(above) :]
        parts = ((above, first, 0), (below, first + len(above) - half, 1))
        return [cls(part.data_ptr(), TYPES[part.dtype], len(part), at, tile, 2) for part, at, tile in parts]


class ExpertsStruct(Structure):
    """Describes `Experts` of octavo.h to ctypes."""

    _fields_ = (
        ("norm", c_void_p),
        ("router", c_void_p),
        ("router_bias", c_void_p),
        ("gate_up", POINTER(WeightStruct)),
        ("down", POINTER(WeightStruct)),
        ("gate_up_bias", c_void_p),
        ("down_bias", c_void_p),
        ("num_experts", c_int64),
        ("top_k", c_int64),
        ("hidden", c_int64),
        ("intermediate", c_int64),
        ("normalises", c_int64),
        ("scale", c_float),
        ("eps", c_float),
        ("alpha", c_float),
        ("limit", c_float),
        ("shift", c_float),
    )

    @staticmethod
    def takes(experts: ExpertWeights) -> bool:
        """Says whether the kernels take these experts: all are tiled, and the inputs of `down` are in order.

        Whoever loads a `down` in an order of its own gives it to the rows of `gate_up` instead.
        """
        tiled = all(isinstance(matrix, TiledWeight) for matrix in (*experts.gate_up, *experts.down))
        return tiled and all(matrix.order is None for matrix in experts.down if isinstance(matrix, TiledWeight))

    @classmethod
    def of(cls, experts: ExpertWeights, top_k: int) -> "ExpertsStruct":
        """Describes experts of tiled weights, without a norm and a router: the choice is made elsewhere.

        Raises ValueError if they are padded to different sizes, since all are multiplied with the same activations.
        """
        for side in (experts.gate_up, experts.down):
            if len({weight.layout.inputs for weight in side if isinstance(weight, TiledWeight)}) > 1:
                raise ValueError("the experts of a layer have kinds that pad their inputs differently")
        count = len(experts.down)
        hidden, intermediate = experts.down[0].shape
        gate_up, down = (
            (WeightStruct * count)(*map(WeightStruct.of, side)) for side in (experts.gate_up, experts.down)
        )
        activation = experts.activation
        return cls(
            gate_up=gate_up,
            down=down,
            gate_up_bias=pointer_to(experts.gate_up_bias),
            down_bias=pointer_to(experts.down_bias),
            num_experts=count,
            top_k=top_k,
            hidden=hidden,
            intermediate=intermediate,
            normalises=True,
            scale=1.0,
            alpha=activation.alpha,
            limit=inf if activation.limit is None else activation.limit,
            shift=activation.shift,
        )

    def route(self, router: Router) -> None:
        """Lets a router choose; the struct is then valid for as long as the router lives, too."""
        self.router = pointer_to(router.weight)
        self.router_bias = pointer_to(router.bias)
        self.normalises = router.normalise
        self.scale = router.scale


INTERFACE = 0x9E228CA2  # octavo.h has the same number.
STRUCTS = (  # in the order of octavo.h
    KindStruct,
    WeightStruct,
    SourceStruct,
    ExpertsStruct,
    PassStruct,
    RotationStruct,
    HeadsStruct,
    PagesStruct,
    AttentionStruct,
)
