"""Holds the sparse block: a router chooses experts for each token, and these run."""

from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.model.ops.seams import Ops
from octavo.model.routes import Routing
from octavo.model.weights.forms import ExpertWeights


@dataclass(frozen=True, slots=True)
class Router:
    """Chooses experts by top-k gating (https://arxiv.org/abs/1701.06538), as in Mixtral; if k is 1, the weight is 1."""

    weight: Tensor  # [E, H]
    top_k: int
    bias: Tensor | None = None  # [E] float32
    normalise: bool = True  # The weights of the chosen experts are divided by their sum.
    scale: float = 1.0  # multiplies the weights
    jitter: float | None = None  # The sparse mixer chooses, with this noise.

    def __call__(self, x: Tensor, ops: Ops, addend: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Returns weights [T, k] float32 and expert ids [T, k], for x [T, H].

        The addend [T, E] changes the logits. An expert whose logit is -inf is not chosen while k others are left.
        """
        # The softmax runs over all experts before the choice. It is in float32, so that 16-bit rounding makes no ties.
        logits = ops.linear(x, self.weight).float()  # [T, E]
        logits = logits if self.bias is None else logits + self.bias
        logits = logits if addend is None else logits + addend
        if self.jitter is not None:
            weights, ids = sparse_mixer(logits, self.jitter)
        else:
            weights, ids = logits.softmax(dim=-1).topk(self.top_k, dim=-1)
            weights = weights / weights.sum(dim=-1, keepdim=True) if self.normalise else weights
        return weights if self.scale == 1 else weights * self.scale, ids


def sparse_mixer(logits: Tensor, jitter: float) -> tuple[Tensor, Tensor]:
    """Chooses two experts for logits [T, E] as Phi-3.5-MoE does; returns weights [T, 2] and ids [T, 2].

    Each pick takes the largest logit (https://arxiv.org/abs/2409.12136). Its weight is its share of a softmax over the
    logits that are close to it: those whose distance from it is at most 2 * jitter of the larger magnitude of the two.
    The second pick leaves out the first. The weights do not sum to 1.
    """
    weights, ids, left = [], [], logits
    for _ in range(2):
        most, chosen = left.max(dim=-1, keepdim=True)  # [T, 1]
        distant = (most - left) / torch.maximum(logits.abs(), most) > 2 * jitter
        weights.append(left.masked_fill(distant, -torch.inf).softmax(dim=-1).gather(1, chosen))
        ids.append(chosen)
        left = left.scatter(1, chosen, -torch.inf)
    return torch.cat(weights, dim=1), torch.cat(ids, dim=1)


@dataclass(frozen=True, slots=True)
class SharedExpert:
    """A SharedExpert runs for every token, beside those that were chosen; a gate says how much it counts."""

    experts: ExpertWeights  # a single one
    gate: Tensor  # [1, H]

    def __call__(self, x: Tensor, ops: Ops) -> Tensor:
        """Maps x [T, H] to [T, H]."""
        return ops.linear(x, self.gate).sigmoid() * ops.experts(x, *_always(x), self.experts)


@dataclass(frozen=True, slots=True)
class MoEBlock:
    """Maps x [T, H] to the weighted sum of the chosen experts' outputs, or to the output of the only expert."""

    router: Router | None  # None: nothing is chosen, and the one expert always runs
    experts: ExpertWeights
    shared: SharedExpert | None = None

    def __call__(self, x: Tensor, ops: Ops, routing: Routing) -> Tensor:
        if self.router is None:
            return ops.experts(x, *_always(x), self.experts)  # [T, H]
        weights, ids = self.router(x, ops, routing.addend())
        routing.tell(ids, weights)
        chosen = ops.experts(x, ids, weights, self.experts)  # [T, H]
        return chosen if self.shared is None else chosen + self.shared(x, ops)


def _always(x: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the ids and weights that choose the only expert for each token."""
    ids = torch.zeros(x.shape[0], 1, dtype=torch.int64, device=x.device)
    return ids, torch.ones(x.shape[0], 1, device=x.device)
