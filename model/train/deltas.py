"""Holds low-rank changes of a feed-forward: how they begin, are applied, merged and rounded, and their file.

A change of a matrix W [out, in] is b @ a (https://arxiv.org/abs/2106.09685), with a [R, in] and b [out, R].
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from octavo.model.config import ModelConfig, ModelError
from octavo.model.train.corpus import generator
from octavo.model.train.dense import DenseModel
from octavo.model.train.files import write_whole

PARTS = ("gate", "up", "down")
FORMAT = "octavo-deltas-1"

Delta = dict[str, Tensor]  # of all layers: gate.a [L, R, H], gate.b [L, I, R], the same of up; down.a [L, R, I], ...


def new_delta(config: ModelConfig, rank: int, random: torch.Generator) -> Delta:
    """Returns a change that changes nothing yet: each b is zero, and each a is random with unit rows on average."""
    layers, hidden, wide = config.num_hidden_layers, config.hidden_size, config.intermediate_size
    delta: Delta = {}
    for part, (out, into) in {"gate": (wide, hidden), "up": (wide, hidden), "down": (hidden, wide)}.items():
        delta[f"{part}.a"] = torch.randn(layers, rank, into, generator=random) / into**0.5
        delta[f"{part}.b"] = torch.zeros(layers, out, rank)
    return delta


def scaled(delta: Delta, scale: float) -> Delta:
    """Returns a change `scale` times as large."""
    return {name: tensor * scale if name.endswith(".b") else tensor for name, tensor in delta.items()}


@dataclass(frozen=True, slots=True)
class Adapted:
    """Adapted is a dense model's feed-forward with one change, which every token passes through."""

    model: DenseModel
    layers: tuple[Delta, ...]  # the change of each layer: gate.a [R, H] and so on

    @classmethod
    def of(cls, model: DenseModel, delta: Delta) -> "Adapted":
        return cls(model, by_layer(delta))

    def __call__(self, layer: int, x: Tensor) -> Tensor:
        """Maps x [T, H] to [T, H]."""
        delta = self.layers[layer]
        gate, up = F.linear(x, self.model.gate_up(layer)).chunk(2, dim=-1)  # [T, I]
        inner = F.silu(gate + change(delta, "gate", x)) * (up + change(delta, "up", x))
        return F.linear(inner, self.model.down(layer)) + change(delta, "down", inner)


def by_layer(delta: Delta) -> tuple[Delta, ...]:
    """Returns the change of each layer. One unbind makes one gradient; an index a layer would make as many."""
    split = {name: tensor.unbind(0) for name, tensor in delta.items()}
    return tuple(dict(zip(split, values, strict=True)) for values in zip(*split.values(), strict=True))


def change(delta: Delta, part: str, x: Tensor) -> Tensor:
    """Returns what a layer's change adds to a product with x [T, in]: [T, out]."""
    return F.linear(F.linear(x, delta[f"{part}.a"]), delta[f"{part}.b"])


def merged(weight: Tensor, delta: Delta, part: str) -> Tensor:
    """Returns a matrix [out, in] with a layer's change, in float32."""
    return weight.float() + delta[f"{part}.b"] @ delta[f"{part}.a"]


@dataclass(frozen=True, slots=True)
class Rounded:
    """A Rounded tensor has 8 bits for each number, and a scale for each of the R rows of an a, or columns of a b."""

    codes: Tensor  # int8
    scales: Tensor  # float32, of the codes' shape with 1 in place of the axis that shares a scale

    @classmethod
    def of(cls, tensor: Tensor, axis: int) -> "Rounded":
        scales = tensor.abs().amax(dim=axis, keepdim=True) / 127
        codes = (tensor / torch.where(scales == 0, 1, scales)).round()
        return cls(codes.to(torch.int8), scales)

    def dense(self) -> Tensor:
        return self.codes.float() * self.scales


def rounded(delta: Delta) -> dict[str, Rounded]:
    """Rounds a change, of one expert or of several, to the numbers that its file holds."""
    return {name: Rounded.of(tensor, -1 if name.endswith(".a") else -2) for name, tensor in delta.items()}


def dense(stored: Mapping[str, Rounded]) -> Delta:
    """Returns what rounded numbers mean, in float32."""
    return {name: each.dense() for name, each in stored.items()}


def packed(stored: Mapping[str, Rounded]) -> dict[str, Tensor]:
    """Returns the tensors that a file holds, two for each factor."""
    codes = {f"{name}.codes": each.codes for name, each in stored.items()}
    return codes | {f"{name}.scales": each.scales for name, each in stored.items()}


def unpacked(tensors: Mapping[str, Tensor]) -> dict[str, Rounded]:
    """Returns what `packed` was given. Raises KeyError."""
    names = [f"{part}.{factor}" for part in PARTS for factor in "ab"]
    return {name: Rounded(tensors[f"{name}.codes"], tensors[f"{name}.scales"]) for name in names}


def together(experts: Sequence[Mapping[str, Rounded]]) -> dict[str, Rounded]:
    """Stacks the changes of several experts: gate.a [X, L, R, H] and so on."""

    def joined(name: str) -> Rounded:
        each = [expert[name] for expert in experts]
        return Rounded(torch.stack([one.codes for one in each]), torch.stack([one.scales for one in each]))

    return {name: joined(name) for name in experts[0]}


@dataclass(frozen=True, slots=True, eq=False)
class Deltas:
    """Deltas are all that a training adds to a dense model: experts 1, 2, ... and the routers."""

    experts: Mapping[str, Rounded]  # codes of gate.a [X, L, R, H], gate.b [X, L, I, R] and so on
    routers: Tensor  # [L, 1 + X, H]
    about: Mapping[str, Any]  # JSON: what they were made of, and how

    def write(self, path: Path) -> None:
        """Writes a safetensors file, whole or not at all. Raises OSError."""
        tensors = packed(self.experts) | {"routers": self.routers}
        held = {name: tensor.contiguous() for name, tensor in tensors.items()}
        write_whole(path, save(held, metadata={FORMAT: json.dumps(self.about)}))

    @classmethod
    def read(cls, path: Path) -> "Deltas":
        """Raises ModelError for a file that is none of these."""
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}  # One key, since safetensors writes several in any order.
                if FORMAT not in metadata:
                    raise ModelError(f"{path} holds no experts that `octavo upcycle --deltas` wrote; give such a file.")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return cls(unpacked(tensors), tensors["routers"], json.loads(metadata[FORMAT]))
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise ModelError(f"{path} cannot be read ({error}); give a file of `octavo upcycle --deltas`.") from None


def seeded(config: ModelConfig, rank: int, seed: int, name: str) -> Delta:
    """Returns the change that the training of a name begins with."""
    return new_delta(config, rank, generator(seed, "delta", name))
