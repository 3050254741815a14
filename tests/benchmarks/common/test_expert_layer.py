"""The bytes that are counted are those of the experts that the tokens touch."""

from pathlib import Path

import pytest
import torch

from benchmarks.common import expert_layer
from octavo.model.config import ModelConfig
from octavo.model.decoder import Decoder
from octavo.model.kernels.cpu.library import Library, library
from octavo.model.loading.checkpoint import load_model
from octavo.model.weights.precision import Precision
from octavo.model.weights.tiles import Int8Weight
from tests.tiny import write_tiny_checkpoint


def load(directory: Path, precision: Precision) -> Decoder:
    config = ModelConfig.from_pretrained(write_tiny_checkpoint(directory))
    return load_model(directory, config, torch.device("cpu"), precision, lambda done, total: None)


def test_distinct_experts_are_counted_once(tmp_path: Path) -> None:
    model = load(tmp_path, Precision.plain(torch.float32))
    config = model.config
    expert = 4 * 3 * config.hidden_size * config.intermediate_size
    seconds, nbytes = expert_layer.measure(model, 1)
    assert seconds > 0
    assert nbytes == config.num_experts_per_tok * expert
    assert expert_layer.measure(model, 64)[1] == pytest.approx(config.num_experts * expert)


@pytest.mark.skipif(library() is None, reason="the C kernels were not built")
def test_kernels_take_as_many_threads_as_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    monkeypatch.setattr(Library, "follow_torch", lambda self: taken.append(torch.get_num_threads()))
    expert_layer.measure(load(tmp_path, Precision(torch.float32, Int8Weight, Int8Weight)), 1)
    assert set(taken) == {torch.get_num_threads()}
