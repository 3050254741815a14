"""Computes a mixture of low-rank experts at nearly the cost of the dense model, with the losses of its routers.

All experts share the dense matrices, so their products are computed once: gate_e x is gate x + b_e (a_e x), and the
weighted sum of the outputs is down of the weighted sum, plus the changes. model/moe.py with merged weights computes the
same thing, expert by expert: it is the reference.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.model.train.deltas import Delta
from octavo.model.train.dense import DenseModel, FeedForward

Choice = tuple[Tensor, Tensor]  # weights [T, k] and ids [T, k]
Choose = Callable[[Tensor, int], Choice]  # of logits [T, E], and k


@dataclass(frozen=True, slots=True, eq=False)
class Routed:
    """Routed is what the router of one layer did with T tokens."""

    logits: Tensor  # [T, E]
    weights: Tensor  # [T, k]
    ids: Tensor  # [T, k]


def top(logits: Tensor, top_k: int) -> Choice:
    """Chooses as Mixtral does: the largest probabilities, divided by their sum."""
    weights, ids = logits.softmax(dim=-1).topk(top_k, dim=-1)
    return weights / weights.sum(dim=-1, keepdim=True), ids


def at_random(random: torch.Generator) -> Choose:
    """Returns a choice that looks at nothing: k different experts of equal weight for each token."""

    def choose(logits: Tensor, top_k: int) -> Choice:
        ids = torch.rand(logits.shape, generator=random).topk(top_k, dim=-1).indices.to(logits.device)
        return torch.full_like(logits[:, :top_k], 1 / top_k), ids

    return choose


@dataclass(frozen=True, slots=True, eq=False)
class SparseModel:
    """A SparseModel is a dense model whose feed-forward is a mixture of it, as expert 0, and of changed copies."""

    model: DenseModel
    experts: tuple[Delta, ...]  # of each layer: gate.a [X, R, H], gate.b [X, I, R] and so on, of experts 1 to X
    top_k: int

    @property
    def count(self) -> int:
        """Returns how many experts a layer has, the original included."""
        return 1 + self.experts[0]["gate.a"].shape[0]

    @classmethod
    def of(cls, model: DenseModel, experts: Delta, top_k: int) -> "SparseModel":
        """`experts` holds all layers: gate.a [X, L, R, H] and so on."""
        layers = range(model.config.num_hidden_layers)
        return cls(model, tuple({name: each[:, n] for name, each in experts.items()} for n in layers), top_k)

    def feed_forward(self, routers: Tensor, seen: list[Routed], choose: Choose = top) -> FeedForward:
        """Returns the feed-forward that routers [L, E, H] direct; it adds what each layer did to `seen`."""

        def compute(layer: int, x: Tensor) -> Tensor:
            logits = F.linear(x, routers[layer])  # [T, E]
            weights, ids = choose(logits, self.top_k)
            seen.append(Routed(logits, weights, ids))
            return self._mix(layer, x, weights, ids)

        return compute

    def _mix(self, layer: int, x: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
        delta, model = self.experts[layer], self.model
        gate, up = F.linear(x, model.gate_up(layer)).chunk(2, dim=-1)  # [T, I]
        total, changes = torch.zeros_like(gate), torch.zeros_like(x)
        for choice in range(self.top_k):
            mask = self._mask(delta, ids[:, choice])  # [T, X * R]
            inner = F.silu(gate + _change(delta, "gate", x, mask)) * (up + _change(delta, "up", x, mask))
            weight = weights[:, choice, None]
            total = total + weight * inner
            changes = changes + weight * _change(delta, "down", inner, mask)
        return F.linear(total, model.down(layer)) + changes

    def _mask(self, delta: Delta, ids: Tensor) -> Tensor:
        """Returns 1 where a factor belongs to a token's expert; expert 0 has none: [T, X * R]."""
        count, rank = delta["gate.a"].shape[:2]
        chosen = F.one_hot(ids, count + 1)[:, 1:].to(delta["gate.a"].dtype)  # [T, X]
        return chosen.repeat_interleave(rank, dim=1)


def _change(delta: Delta, part: str, x: Tensor, mask: Tensor) -> Tensor:
    """Returns what each token's own expert adds to a product with x [T, in]: [T, out]."""
    a, b = delta[f"{part}.a"], delta[f"{part}.b"]  # [X, R, in], [X, out, R]
    inner = F.linear(x, a.flatten(0, 1)) * mask  # [T, X * R]
    return F.linear(inner, b.transpose(0, 1).flatten(1))


def balance_loss(routed: Routed) -> Tensor:
    """Returns the load-balancing loss of Switch Transformers (https://arxiv.org/abs/2101.03961, equations 4 to 6).

    It is E times the sum over experts of (share of all choices) * (mean probability): 1 in perfect balance, for any k.
    """
    count = routed.logits.shape[-1]
    shares = torch.bincount(routed.ids.flatten(), minlength=count) / routed.ids.numel()  # [E]
    return count * (shares * routed.logits.softmax(dim=-1).mean(dim=0)).sum()


def z_loss(routed: Routed) -> Tensor:
    """Returns the router z-loss of ST-MoE (https://arxiv.org/abs/2202.08906, equation 5), which keeps logits small."""
    return routed.logits.logsumexp(dim=-1).square().mean()


def domain_loss(routed: Routed, targets: Tensor) -> Tensor:
    """Returns the cross-entropy of a router's probabilities with those of a token's domain, targets [T, E]."""
    return -(targets * routed.logits.log_softmax(dim=-1)).sum(dim=-1).mean()
