"""Makes tiny dense models, domains that differ, and orders, for tests of training."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from octavo.model.config import ModelConfig
from octavo.model.train.corpus import Document, Domain, generator, split
from octavo.model.train.dense import DenseModel, load_dense
from octavo.model.train.settings import Settings, experts_for
from octavo.model.train.tasks import Bench, Costs
from octavo.model.train.upcycle import Order
from tests.tiny import write_tiny_checkpoint

CPU = torch.device("cpu")
LENGTH = 16
SETTINGS = Settings(length=LENGTH, rows=2, rank=2, learning_rate=1e-2, router_learning_rate=2e-2)
QWEN3 = {"model_type": "qwen3", "attention_bias": False, "head_dim": 8}


def quiet(what: str, done: int, total: int, note: str = "") -> None:
    """Tells nobody."""


def dense_checkpoint(directory: Path, **overrides: Any) -> Path:
    """Writes a dense model of two layers; for Qwen3 it has the norms of heads, too."""
    write_tiny_checkpoint(directory, **({"model_type": "llama"} | overrides))
    if overrides.get("model_type") == "qwen3":
        add_head_norms(directory)
    return directory


def add_head_norms(directory: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(directory / "model.safetensors")
    random = torch.Generator().manual_seed(7)
    for layer in range(2):
        for name in ("q_norm", "k_norm"):
            tensors[f"model.layers.{layer}.self_attn.{name}.weight"] = 1 + 0.1 * torch.randn(8, generator=random)
    save_file(tensors, directory / "model.safetensors")


def dense_model(directory: Path) -> DenseModel:
    return DenseModel(load_dense(directory, ModelConfig.from_pretrained(directory), CPU, lambda done, total: None))


def documents(first: int, count: int = 24, length: int = 20, seed: int = 0) -> list[Document]:
    """Returns documents over ten tokens from `first` on, each usually followed by the next one."""
    random = generator(seed, "documents", first)
    return [Document.of(_walk(first, length, random)) for _ in range(count)]


def _walk(first: int, length: int, random: torch.Generator) -> list[int]:
    tokens = [int(torch.randint(10, (1,), generator=random))]
    for _ in range(length - 1):
        step = 1 if torch.rand(1, generator=random) < 0.8 else int(torch.randint(10, (1,), generator=random))
        tokens.append((tokens[-1] + step) % 10)
    return [first + token for token in tokens]


def domains(names: Sequence[str] = ("code", "law"), seed: int = 0) -> tuple[Domain, ...]:
    return split([(name, documents(20 * (n + 1))) for n, name in enumerate(names)], seed, LENGTH)


def bench(model: DenseModel, settings: Settings = SETTINGS, steps: int = 4) -> Bench:
    found = domains()
    return Bench(model, found, experts_for(settings, [each.name for each in found]), settings, steps, Costs(1, 1, 0.1))


def order(source: Path, out: Path, **changes: Any) -> Order:
    """Returns an order of four steps; changes are of the order, or of its settings."""
    own = {name: value for name, value in changes.items() if name in Order.__dataclass_fields__}
    others = {name: value for name, value in changes.items() if name not in own}
    asked = Order(source, "tiny", out, None, replace(SETTINGS, **others), steps=4, minutes=45, device=CPU)
    return replace(asked, **own)
