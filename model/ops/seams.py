"""Defines Ops, the four seams where fast code plugs in, and fills them with torch alone."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from octavo.model.batch import ForwardBatch
from octavo.model.kv_cache import KVCache, LayerCache
from octavo.model.ops.attention import Plan, attention, plan_attention
from octavo.model.ops.experts import experts
from octavo.model.ops.linear import linear
from octavo.model.ops.sampling import draw
from octavo.model.weights.forms import ExpertWeights, Weight


@dataclass(frozen=True, slots=True)
class Ops:
    """Ops are the functions that a decoder calls. Each has a `*_reference` beside it that says what it must return."""

    plan_attention: Callable[[ForwardBatch, KVCache, int | None], Plan]
    attention: Callable[[Tensor, Tensor, Tensor, LayerCache, Plan, Tensor | None], Tensor]
    experts: Callable[[Tensor, Tensor, Tensor, ExpertWeights], Tensor]
    linear: Callable[[Tensor, Weight], Tensor]
    draw: Callable[[Tensor, Tensor], Tensor] = draw
    # A CUDA graph may replay a decoding pass on other lengths and blocks, since the host has looked at shapes alone.
    capturable: bool = False


TORCH = Ops(plan_attention, attention, experts, linear)
