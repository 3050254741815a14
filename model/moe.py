"""Holds the sparse block: a router chooses experts for each token, and these run."""

from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.model.ops.seams import Ops
from octavo.model.weights.forms import ExpertWeights


@dataclass(frozen=True, slots=True)
class Router:
    """Chooses experts by top-k gating (https://arxiv.org/abs/1701.06538), as in Mixtral; if k is 1, the weight is 1."""

    weight: Tensor  # [E, H]
    top_k: int

    def __call__(self, x: Tensor, ops: Ops) -> tuple[Tensor, Tensor]:
        """Returns weights [T, k] float32, which sum to 1 in each row, and expert ids [T, k], for x [T, H]."""
        # The softmax runs over all experts before the choice. It is in float32, so that 16-bit rounding makes no ties.
        probabilities = ops.linear(x, self.weight).float().softmax(dim=-1)  # [T, E]
        weights, ids = probabilities.topk(self.top_k, dim=-1)
        return weights / weights.sum(dim=-1, keepdim=True), ids


@dataclass(frozen=True, slots=True)
class MoEBlock:
    """Maps x [T, H] to the weighted sum of the chosen experts' outputs, or to the output of the only expert."""

    router: Router | None  # None: nothing is chosen, and the one expert always runs
    experts: ExpertWeights

    def __call__(self, x: Tensor, ops: Ops) -> Tensor:
        if self.router is None:
            always = torch.zeros(x.shape[0], 1, dtype=torch.int64, device=x.device)
            return ops.experts(x, always, torch.ones(x.shape[0], 1, device=x.device), self.experts)  # [T, H]
        weights, ids = self.router(x, ops)
        return ops.experts(x, ids, weights, self.experts)  # [T, H]
