"""The three seams where fast code plugs in, and the one place that chooses what is behind them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from model.batch import ForwardBatch
from model.config import ModelConfig
from model.kernels.cpu.library import library
from model.kv_cache import KVCache, LayerCache
from model.ops.attention import attention, plan_attention
from model.ops.cpu import CpuOps
from model.ops.experts import experts
from model.ops.linear import linear
from model.quantization import ExpertWeights, Weight

Plan = Any  # what plan_attention makes of a batch is for the attention beside it alone


@dataclass(frozen=True, slots=True)
class Ops:
    """The functions a decoder layer calls; each has a `*_reference` beside it that says what it must return."""

    plan_attention: Callable[[ForwardBatch, KVCache, int | None], Plan]
    attention: Callable[[Tensor, Tensor, Tensor, LayerCache, Plan], Tensor]
    experts: Callable[[Tensor, Tensor, Tensor, ExpertWeights], Tensor]
    linear: Callable[[Tensor, Weight], Tensor]


def select_ops(config: ModelConfig, device: torch.device) -> Ops:
    """Chooses once per model. Raises ValueError for a device that nothing here was tried on."""
    match device.type:
        case "cpu" if (kernels := library()) is not None:
            cpu = CpuOps(kernels)
            return Ops(cpu.plan_attention, cpu.attention, cpu.experts, cpu.linear)
        case "cpu" | "cuda":
            return Ops(plan_attention, attention, experts, linear)
        case other:
            raise ValueError(f"no operations for device {other!r}")
