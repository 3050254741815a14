"""The experts' two products on a GPU, one by one: shown beside the whole layer, and what tuning works on."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from benchmarks.gpu.clock import Calls
from benchmarks.gpu.run import Run
from octavo.model.config import ModelConfig
from octavo.model.kernels.gpu import experts
from octavo.model.kernels.gpu.configs import Config
from octavo.model.kernels.gpu.decoder import FEW, config_for
from octavo.model.kernels.gpu.sort import SortedPairs, sort_pairs
from octavo.model.weights.kinds import ExpertWeights
from octavo.model.weights.row_major import Stack


@dataclass(frozen=True, slots=True)
class Load:
    """The rows of a step, and where its router sends them."""

    x: Tensor  # [T, H]
    ids: Tensor  # [T, k] int32
    weights: Tensor  # [T, k] float32

    @classmethod
    def random(cls, config: ModelConfig, tokens: int, dtype: torch.dtype, device: torch.device) -> "Load":
        """Each token to k different experts, all equally likely."""
        generator = torch.Generator(device).manual_seed(tokens)
        x = torch.randn(tokens, config.hidden_size, generator=generator, device=device).to(dtype)
        scores = torch.rand(tokens, config.num_experts, generator=generator, device=device)
        weights, ids = scores.topk(config.num_experts_per_tok)
        return cls(x, ids.int(), weights / weights.sum(-1, keepdim=True))

    def touched(self) -> list[int]:
        """The experts that are chosen."""
        return self.ids.unique().tolist()


@dataclass(frozen=True, slots=True)
class Products:
    """gate_up and down of one step, each over all copies of a layer's weights in turn."""

    run: Run
    load: Load
    gate_ups: tuple[Stack, ...]
    downs: tuple[Stack, ...]

    @classmethod
    def of(cls, run: Run, load: Load, layers: list[ExpertWeights]) -> "Products":
        gate_ups = tuple(Stack.of(layer.gate_up) for layer in layers)
        return cls(run, load, gate_ups, tuple(Stack.of(layer.down) for layer in layers))

    @property
    def are_few(self) -> bool:
        """Whether the step has so few tokens that they are not sorted."""
        return len(self.load.x) <= FEW

    @property
    def ops(self) -> tuple[str, str]:
        """What the table of configurations calls them."""
        room = "few" if self.are_few else "experts"
        return f"{room}.gate_up", f"{room}.down"

    def config(self, op: str) -> Config:
        """As the table has it; both run over the same tiles of pairs."""
        gate_up, down = (
            config_for(name, stacks[0], len(self.load.x), self.run.arch)
            for name, stacks in zip(self.ops, (self.gate_ups, self.downs), strict=True)
        )
        return gate_up if op == self.ops[0] else replace(down, tokens=gate_up.tokens)

    def calls(self, op: str, config: Config) -> Calls:
        """With another configuration, which the calls, or this, may refuse."""
        return self._gate_up(config) if op == self.ops[0] else self._down(config)

    def floor(self, op: str) -> float:
        """Seconds: the weights of the chosen experts, or the arithmetic."""
        stack = (self.gate_ups if op == self.ops[0] else self.downs)[0]
        parts = [part for part in (stack.quants, stack.scales) if part is not None]
        read = sum(part[0].nbytes for part in parts) * len(self.load.touched())
        return self.run.ceilings.floor(read, 2.0 * self.load.ids.numel() * stack.shape[0] * stack.shape[1])

    def _gate_up(self, config: Config) -> Calls:
        load, pairs, top_k = self.load, self._pairs(config), self.load.ids.shape[1]
        return [lambda stack=stack: experts.gate_up(load.x, stack, pairs, top_k, config) for stack in self.gate_ups]

    def _down(self, config: Config) -> Calls:
        before = self.config(self.ops[0])
        inner, pairs = self._gate_up(before)[0](), self._pairs(before)
        return [lambda stack=stack: experts.down(inner, stack, pairs, config) for stack in self.downs]

    def _pairs(self, config: Config) -> SortedPairs | Tensor:
        """The step's, sorted unless they are few."""
        ids = self.load.ids
        return ids.view(-1) if self.are_few else sort_pairs(ids, self.gate_ups[0].quants.shape[0], config.tokens)
