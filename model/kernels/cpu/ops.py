"""Fills the seams on a CPU that has the C kernels; what they do not take goes to torch."""

from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.model.batch import ForwardBatch
from octavo.model.kernels.cpu.library import Library
from octavo.model.kernels.cpu.structs import ExpertsStruct, PagesStruct, PassStruct, WeightStruct
from octavo.model.kv_cache import KVCache, LayerCache
from octavo.model.ops.attention import Plan
from octavo.model.ops.seams import Ops
from octavo.model.weights.forms import ExpertWeights, Weight
from octavo.model.weights.tiles import TiledWeight


@dataclass(frozen=True, slots=True)
class CpuPlan(Plan):
    """A CpuPlan is the Plan of the C kernels: the batch as a struct."""

    batch: ForwardBatch  # owns the memory that the struct points into
    struct: PassStruct


@dataclass(frozen=True, slots=True)
class CpuOps:
    """Holds the functions of Ops over the C kernels."""

    kernels: Library
    plain: Ops  # for what the kernels do not take

    def ops(self) -> Ops:
        return Ops(self.plan_attention, self.attention, self.experts, self.linear)

    def plan_attention(self, batch: ForwardBatch, cache: KVCache, window: int | None) -> Plan:
        """Does what model.ops.attention.plan_attention does; every forward pass begins here."""
        self.kernels.follow_torch()
        if cache.layers[0].keys.dtype != torch.float32:
            return self.plain.plan_attention(batch, cache, window)
        return CpuPlan(batch, PassStruct.of(batch, cache.block_size, window))

    def attention(
        self, q: Tensor, k: Tensor, v: Tensor, cache_layer: LayerCache, plan: Plan, sinks: Tensor | None = None
    ) -> Tensor:
        """Does what model.ops.attention.attention does; the heads of a token must lie one behind the other."""
        if not isinstance(plan, CpuPlan):
            return self.plain.attention(q, k, v, cache_layer, plan, sinks)
        return self.kernels.attention((q, k, v), plan.struct, None, PagesStruct.of(cache_layer), sinks)

    def experts(self, x: Tensor, ids: Tensor, weights: Tensor, expert_weights: ExpertWeights) -> Tensor:
        """Does what model.ops.experts.experts does."""
        if x.dtype != torch.float32 or not ExpertsStruct.takes(expert_weights):
            return self.plain.experts(x, ids, weights, expert_weights)
        return self.kernels.experts(x, ids, weights, ExpertsStruct.of(expert_weights, ids.shape[1]))

    def linear(self, x: Tensor, weight: Weight) -> Tensor:
        """Does what model.ops.linear.linear does."""
        if isinstance(weight, TiledWeight) and x.dtype == torch.float32:
            return self.kernels.linear(x.contiguous(), WeightStruct.of(weight))
        return self.plain.linear(x, weight)
