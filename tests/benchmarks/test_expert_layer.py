"""The bytes that are counted are those of the experts that the tokens touch."""

from pathlib import Path

import pytest
import torch

from benchmarks import expert_layer
from model.checkpoint import load_model
from model.config import ModelConfig
from model.precision import Precision
from tests.tiny import write_tiny_checkpoint


def test_distinct_experts_are_counted_once(tmp_path: Path) -> None:
    config = ModelConfig.from_pretrained(write_tiny_checkpoint(tmp_path))
    model = load_model(tmp_path, config, torch.device("cpu"), Precision.plain(torch.float32), lambda done, total: None)
    expert = 4 * 3 * config.hidden_size * config.intermediate_size
    seconds, nbytes = expert_layer.measure(model, 1)
    assert seconds > 0
    assert nbytes == config.num_experts_per_tok * expert
    assert expert_layer.measure(model, 64)[1] == pytest.approx(config.num_experts * expert)
