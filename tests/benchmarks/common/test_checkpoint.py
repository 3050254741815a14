"""Models of random weights have the sizes that are stated, are the same for the same seed, and can be served."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.common.checkpoint import BOS, BYTES, SHAPES, TEMPLATE, WEIGHTS, build, tensors, tokenizer, vocabulary
from octavo.model.config import ModelConfig
from octavo.model.kernels.choice import select_backend
from octavo.model.loading.checkpoint import load_model
from octavo.model.weights.precision import Precision
from octavo.server.text.tokenizer import Tokenizer
from tests.benchmarks.common.support import SMALL_SHAPE

TEXT = "Grüße, 你好! the quick brown fox"


def small(directory: Path, seed: int = 0, shape: str = "sparse") -> list[int]:
    """Builds a small model; returns the progress that was reported."""
    done: list[int] = []
    build(directory, SHAPES[shape] | SMALL_SHAPE, seed, lambda now, total: done.append(now))
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
    backend = select_backend(config, torch.device("cpu"))
    model = load_model(tmp_path, config, backend, Precision.plain(torch.float32))
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
    assert progress[-1] == parameters(SHAPES["sparse"] | SMALL_SHAPE) * 2
    assert small(tmp_path / "a") == []
    small(tmp_path / "b")
    first = (tmp_path / "a" / WEIGHTS).read_bytes()
    assert (tmp_path / "b" / WEIGHTS).read_bytes() == first
    assert small(tmp_path / "a", seed=1) != []
    assert (tmp_path / "a" / WEIGHTS).read_bytes() != first


def test_text_comes_back() -> None:
    backend = tokenizer(32000)
    encoding = backend.encode(TEXT)
    assert encoding.ids[0] == BOS
    assert backend.decode(encoding.ids) == TEXT
    assert len(encoding.ids) < len(TEXT.encode())


def test_every_id_is_text_of_its_own() -> None:
    tokens = vocabulary(32000)
    assert len(set(tokens)) == len(tokens) == 32000
    backend = tokenizer(32000)
    assert backend.get_vocab_size() == 32000
    assert backend.decode([31999]).strip().isalpha()
    assert "" not in [backend.decode([id]) for id in range(BYTES, 32000, 97)]


def test_the_server_reads_it(tmp_path: Path) -> None:
    tokenizer(300).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "' + TEMPLATE.replace("\n", "\\n") + '"}')
    assert Tokenizer.from_directory(tmp_path).vocab_size == 300
