"""The operations of a CPU that has the C kernels: theirs for what they take, torch's for all else."""

from dataclasses import dataclass

import torch
from torch import Tensor

from model.batch import ForwardBatch
from model.kernels.cpu.library import Library
from model.kernels.cpu.structs import ExpertsStruct, WeightStruct
from model.kv_cache import KVCache
from model.ops.attention import AttentionPlan, plan_attention
from model.ops.experts import experts
from model.ops.linear import linear
from model.quantization import ExpertWeights, GroupedWeight, Weight


@dataclass(frozen=True, slots=True)
class CpuOps:
    """The functions of Ops, over the C kernels."""

    kernels: Library

    def plan_attention(self, batch: ForwardBatch, cache: KVCache, window: int | None) -> AttentionPlan:
        """As model.ops.attention's; every step begins here."""
        self.kernels.follow_torch()
        return plan_attention(batch, cache, window)

    def experts(self, x: Tensor, ids: Tensor, weights: Tensor, expert_weights: ExpertWeights) -> Tensor:
        """As model.ops.experts."""
        matrices = (*expert_weights.gate_up, *expert_weights.down)
        if x.dtype != torch.float32 or not all(isinstance(matrix, GroupedWeight) for matrix in matrices):
            return experts(x, ids, weights, expert_weights)
        return self.kernels.experts(x, ids, weights, ExpertsStruct.of(expert_weights, ids.shape[1]))

    def linear(self, x: Tensor, weight: Weight) -> Tensor:
        """As model.ops.linear."""
        if isinstance(weight, GroupedWeight) and x.dtype == torch.float32:
            return self.kernels.linear(x.contiguous(), WeightStruct.of(weight))
        return linear(x, weight)
