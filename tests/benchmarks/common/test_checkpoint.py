"""The models of random weights: as large as they are said to be, the same for the same seed, ready to be served."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.common.checkpoint import SHAPES, WEIGHTS, build, tensors
from octavo.model.config import ModelConfig
from octavo.model.loading.checkpoint import load_model
from octavo.model.weights.precision import Precision

SMALL = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


def small(directory: Path, seed: int = 0, shape: str = "sparse") -> list[int]:
    """Builds one; returns the progress that was reported."""
    done: list[int] = []
    build(directory, SHAPES[shape] | SMALL, seed, lambda now, total: done.append(now))
    return done


def parameters(config: dict[str, Any]) -> int:
    return sum(tensor.nbytes for tensor in tensors(config)) // 2


def test_the_sparse_model_has_the_size_that_the_figures_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SHAPES["sparse"]))
    config = ModelConfig.from_pretrained(tmp_path)
    assert config.num_parameters() == parameters(SHAPES["sparse"])
    assert round(config.num_parameters() / 1e6) == 1517
    embedding = config.vocab_size * config.hidden_size
    assert round((config.num_active_parameters() - embedding) / 1e6) == 427
    assert parameters(SHAPES["dense-total"]) == pytest.approx(config.num_parameters(), rel=0.005)
    assert parameters(SHAPES["dense-active"]) == pytest.approx(config.num_active_parameters(), rel=0.005)


def test_it_loads_and_activations_keep_their_size(tmp_path: Path) -> None:
    small(tmp_path)
    config = ModelConfig.from_pretrained(tmp_path)
    model = load_model(tmp_path, config, torch.device("cpu"), Precision.plain(torch.float32), lambda done, total: None)
    assert model.embedding.table.std().item() == pytest.approx(1, abs=0.05)
    assert model.norm.weight.mean().item() == pytest.approx(1, abs=0.05)
    assert torch.is_tensor(model.head)
    assert model.head.std().item() == pytest.approx(config.hidden_size**-0.5, rel=0.05)


def test_dense_names_are_mistrals(tmp_path: Path) -> None:
    small(tmp_path, shape="dense-active")
    stored = load_file(tmp_path / WEIGHTS)
    assert stored["model.layers.1.mlp.down_proj.weight"].shape == (32, 48)
    assert not any("sparse" in name for name in stored)


def test_the_same_seed_gives_the_same_bytes_and_is_not_written_twice(tmp_path: Path) -> None:
    progress = small(tmp_path / "a")
    assert progress == sorted(progress)
    assert progress[-1] == parameters(SHAPES["sparse"] | SMALL) * 2
    assert small(tmp_path / "a") == []
    small(tmp_path / "b")
    first = (tmp_path / "a" / WEIGHTS).read_bytes()
    assert (tmp_path / "b" / WEIGHTS).read_bytes() == first
    assert small(tmp_path / "a", seed=1) != []
    assert (tmp_path / "a" / WEIGHTS).read_bytes() != first
