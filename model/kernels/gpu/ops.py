"""Fills the four seams on a GPU with the Triton kernels; GpuDecoder needs fewer launches of them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.model.batch import ForwardBatch
from octavo.model.config import ModelConfig
from octavo.model.kernels.gpu import attention as paged
from octavo.model.kernels.gpu.attention_plan import AttentionTiles, plan
from octavo.model.kernels.gpu.configs import arch_of
from octavo.model.kernels.gpu.decoder import PagedPass, are_taken, partial_outputs
from octavo.model.kernels.gpu.linear import linear
from octavo.model.kernels.gpu.sampling import draw
from octavo.model.kv_cache import KVCache, LayerCache
from octavo.model.ops.attention import Plan
from octavo.model.ops.experts import experts as plain_experts
from octavo.model.ops.seams import Ops
from octavo.model.weights.forms import ExpertWeights, Weight
from octavo.model.weights.stack import Stack


@dataclass(frozen=True, slots=True)
class GpuOps:
    """Holds the functions of Ops over the Triton kernels."""

    config: ModelConfig
    processors: int  # multiprocessors of the device
    arch: str  # the name that configs.choose knows

    @classmethod
    def on(cls, config: ModelConfig, device: torch.device) -> "GpuOps":
        """Returns the operations of a model on a device with CUDA."""
        properties = torch.cuda.get_device_properties(device)
        arch = arch_of(torch.cuda.get_device_capability(device))
        return cls(config, properties.multi_processor_count, arch)

    def ops(self) -> Ops:
        return Ops(self.plan_attention, self.attention, self.experts, self.linear, draw, capturable=True)

    def plan_attention(self, batch: ForwardBatch, cache: KVCache, window: int | None) -> Plan:
        """Does what model.ops.attention.plan_attention does. Raises ModelError for a device without configurations."""
        tiles = AttentionTiles.of(self.config, cache.layers[0].keys.dtype, self.arch, self.processors)
        return PagedPass(plan(batch, cache, window, tiles), batch.slots)

    def attention(
        self, q: Tensor, k: Tensor, v: Tensor, cache_layer: LayerCache, plan: Plan, sinks: Tensor | None = None
    ) -> Tensor:
        """Does what model.ops.attention.attention does."""
        assert isinstance(plan, PagedPass)
        cache_layer.write(k, v, plan.slots.remainder(cache_layer.key_slots.shape[0]))
        return paged.attend(q, cache_layer, plan.attention, sinks)

    def linear(self, x: Tensor, weight: Weight) -> Tensor:
        """Does what model.ops.linear.linear does. Raises ModelError for a kind without configurations."""
        return linear(x, weight, self.arch)

    def experts(self, x: Tensor, ids: Tensor, weights: Tensor, expert_weights: ExpertWeights) -> Tensor:
        """Does what model.ops.experts.experts does, for weights that are one stack."""
        if not are_taken(expert_weights):
            return plain_experts(x, ids, weights, expert_weights)
        gate_up = Stack.of(expert_weights.gate_up, expert_weights.gate_up_bias, expert_weights.activation)
        down = Stack.of(expert_weights.down, expert_weights.down_bias)
        partials = partial_outputs(x.contiguous(), ids.int(), gate_up, down, self.arch)  # [S, T * k, H]
        chosen = partials.sum(0).view(*ids.shape, -1)  # [T, k, H]
        if down.bias is not None:
            chosen += down.bias[ids]
        return torch.bmm(weights[:, None, :], chosen).squeeze(1).to(x.dtype)
