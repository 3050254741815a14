"""Measures one layer's experts in every kind of weights, beside torch's grouped product and peers: section `experts`.

Their two products are measured one by one, too. benchmarks.gpu.tune tunes these.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.clock import Calls
from benchmarks.gpu.inputs import experts_of
from benchmarks.gpu.run import ExpertsPeer, Measurement, Run, difference, poisoned
from octavo.model.config import ModelConfig
from octavo.model.kernels.gpu import experts
from octavo.model.kernels.gpu.combine import combine
from octavo.model.kernels.gpu.configs import Config
from octavo.model.kernels.gpu.decoder import FEW, config_for, partial_outputs
from octavo.model.kernels.gpu.sort import SortedPairs, sort_pairs
from octavo.model.weights.forms import ExpertWeights, Weight
from octavo.model.weights.stack import Stack

COPIES = 2  # of the weights, which take turns: one token reads more of one copy than any L2 holds
PREFILLS = (1024, 4096)  # tokens
PRODUCTS = (1, 8, 64, 256)  # tokens for which the products are measured one by one
ALLOWED = 0.005  # against float64 on the same rounded weights; bfloat16 rounds by 0.17% on average


@dataclass(frozen=True, slots=True)
class RoutedTokens:
    """A RoutedTokens holds a step's normed activations and the experts that its router chose."""

    x: Tensor  # [T, H]
    ids: Tensor  # [T, k] int32
    weights: Tensor  # [T, k] float32

    @classmethod
    def random(cls, config: ModelConfig, tokens: int, dtype: torch.dtype, device: torch.device) -> "RoutedTokens":
        """Sends each token to k different experts, all equally likely. The same arguments give the same tokens."""
        generator = torch.Generator(device).manual_seed(tokens)
        x = torch.randn(tokens, config.hidden_size, generator=generator, device=device).to(dtype)
        scores = torch.rand(tokens, config.num_experts, generator=generator, device=device)
        weights, ids = scores.topk(config.num_experts_per_tok)
        return cls(x, ids.int(), weights / weights.sum(-1, keepdim=True))

    def touched(self) -> list[int]:
        """Returns the experts that at least one token chose."""
        return self.ids.unique().tolist()


@dataclass(frozen=True, slots=True)
class Products:
    """A Products runs gate_up and down of one step, each over all copies of a layer's weights in turn."""

    run: Run
    tokens: RoutedTokens
    gate_ups: tuple[Stack, ...]
    downs: tuple[Stack, ...]

    @classmethod
    def of(cls, run: Run, tokens: RoutedTokens, layers: list[ExpertWeights]) -> "Products":
        gate_ups = tuple(Stack.of(layer.gate_up) for layer in layers)
        return cls(run, tokens, gate_ups, tuple(Stack.of(layer.down) for layer in layers))

    @property
    def are_few(self) -> bool:
        """Says whether the step has so few tokens that its pairs are not sorted."""
        return len(self.tokens.x) <= FEW

    @property
    def ops(self) -> tuple[str, str]:
        """Returns the names of both products in the table of configurations."""
        path = "few" if self.are_few else "experts"
        return f"{path}.gate_up", f"{path}.down"

    def config(self, op: str) -> Config:
        """Returns the table's configuration, in which down takes as many tokens at once as gate_up."""
        gate_up, down = (
            config_for(name, stacks[0], len(self.tokens.ids), self.tokens.ids.shape[1], self.run.arch)
            for name, stacks in zip(self.ops, (self.gate_ups, self.downs), strict=True)
        )
        return gate_up if op == self.ops[0] else replace(down, tokens=gate_up.tokens)

    def calls(self, op: str, config: Config) -> Calls:
        """Returns the calls of one product. This, or a call, raises if the configuration does not work."""
        return self._gate_up(config) if op == self.ops[0] else self._down(config)

    def floor(self, op: str) -> float:
        """Returns the seconds that reading the chosen experts' weights, or the arithmetic, takes at least."""
        stack = (self.gate_ups if op == self.ops[0] else self.downs)[0]
        read = sum(part[0].nbytes for part in stack.tensors().values()) * len(self.tokens.touched())
        return self.run.ceilings.floor(read, 2.0 * self.tokens.ids.numel() * stack.shape[0] * stack.shape[1])

    def _gate_up(self, config: Config) -> Calls:
        x, pairs, top_k = self.tokens.x, self._pairs(config), self.tokens.ids.shape[1]
        return [partial(experts.gate_up, x, stack, pairs, top_k, config) for stack in self.gate_ups]

    def _down(self, config: Config) -> Calls:
        before = self.config(self.ops[0])
        inner, pairs = self._gate_up(before)[0](), self._pairs(before)
        return [partial(experts.down, inner, stack, pairs, config) for stack in self.downs]

    def _pairs(self, config: Config) -> SortedPairs | Tensor:
        """Returns the step's (token, expert) pairs, sorted unless they are few."""
        ids = self.tokens.ids
        return ids.view(-1) if self.are_few else sort_pairs(ids, self.gate_ups[0].quants.shape[0], config.tokens)


def measure(run: Run) -> None:
    """Compares and times every kind of weights at every number of tokens."""
    for name in run.kinds:
        layers = [experts_of(run.config, run.kind(name), run.device) for _ in range(COPIES)]
        for count in (*run.tokens, *(PREFILLS if run.is_real else ())):
            tokens = RoutedTokens.random(run.config, count, run.dtype, run.device)
            with run.attempt(f"experts in {name}, T={count}"):
                _layer(run, name, tokens, layers)
            if count in PRODUCTS:
                with run.attempt(f"products in {name}, T={count}"):
                    _products(run, name, Products.of(run, tokens, layers))
        del layers
        run.forget()


def ours(run: Run, tokens: RoutedTokens, layer: ExpertWeights) -> Callable[[], Tensor]:
    """Returns a call that computes the layer as GpuDecoder does, with the residual added."""
    gate_up, down = Stack.of(layer.gate_up), Stack.of(layer.down)

    def call() -> Tensor:
        partials = partial_outputs(tokens.x, tokens.ids, gate_up, down, run.arch)
        return combine(partials, tokens.weights, tokens.x, None, run.config.rms_norm_eps)[0]

    return call


def grouped(x: Tensor, ids: Tensor, weights: Tensor, layer: ExpertWeights) -> Tensor:
    """Computes the layer with torch's grouped product, as transformers' fastest experts do."""
    gate_up, down = Stack.of(layer.gate_up).quants, Stack.of(layer.down).quants
    order = ids.flatten().argsort(stable=True)
    counts = (ids.flatten()[:, None] == torch.arange(len(gate_up), device=x.device)).sum(0)
    ends = counts.cumsum(0).int()
    gate, up = F.grouped_mm(x[order // ids.shape[1]], gate_up.mT, offs=ends).chunk(2, dim=-1)
    by_expert = F.grouped_mm(F.silu(gate) * up, down.mT, offs=ends)
    chosen = torch.empty_like(by_expert).index_copy_(0, order, by_expert).view(*ids.shape, -1)  # [T, k, H]
    return x + (chosen * weights[..., None]).sum(1).to(x.dtype)


def exact(tokens: RoutedTokens, layer: ExpertWeights) -> Tensor:
    """Computes the layer in float64, on the weights as they are held."""
    total = tokens.x.double()
    for expert in tokens.touched():
        rows, choices = torch.where(tokens.ids == expert)
        gate_up, down = (_dense(side[expert]) for side in (layer.gate_up, layer.down))
        gate, up = (tokens.x[rows].double() @ gate_up.T).chunk(2, dim=-1)
        outputs = (F.silu(gate) * up) @ down.T
        total.index_add_(0, rows, outputs * tokens.weights[rows, choices, None].double())
    return total


def _layer(run: Run, name: str, tokens: RoutedTokens, layers: list[ExpertWeights]) -> None:
    title, expected = f"{name}, T={len(tokens.x)}", exact(tokens, layers[0])
    with poisoned():
        actual = ours(run, tokens, layers[0])()
    run.check(f"experts in {title}", difference(actual, expected), ALLOWED)
    touched, others = tokens.touched(), {}
    for peer, function in ({"grouped_mm": grouped} | run.peers if name == "bf16" else {}).items():
        with run.attempt(f"{peer} in {title}"):
            calls = _calls(function, tokens, layers)
            run.check(f"{peer} in {title}", difference(calls[0](), expected), ALLOWED)
            others[peer] = run.clock.time(calls)
    flop = 6.0 * tokens.ids.numel() * run.config.hidden_size * run.config.intermediate_size
    read = sum(layers[0].gate_up[expert].nbytes + layers[0].down[expert].nbytes for expert in touched)
    run.add(
        Measurement(
            section="experts of one layer, for T tokens",
            name=title,
            floor=run.ceilings.floor(read, flop),
            time=run.clock.time([ours(run, tokens, layer) for layer in layers]),
            others=others,
            note=f"{len(touched)} experts touched",
        )
    )


def _products(run: Run, name: str, products: Products) -> None:
    for op in products.ops:
        run.add(
            Measurement(
                section="their two products, one by one",
                name=f"{op} in {name}, T={len(products.tokens.x)}",
                floor=products.floor(op),
                time=run.clock.time(products.calls(op, products.config(op))),
            )
        )


def _calls(function: ExpertsPeer, tokens: RoutedTokens, layers: list[ExpertWeights]) -> Calls:
    return [partial(function, tokens.x, tokens.ids, tokens.weights, layer) for layer in layers]


def _dense(weight: Weight) -> Tensor:
    return (weight if isinstance(weight, Tensor) else weight.dense()).double()
