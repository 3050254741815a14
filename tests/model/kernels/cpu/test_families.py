"""The kernels compute of each family's layers what its plain layers compute."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from octavo.model.config import ModelConfig
from octavo.model.decoder import Decoder
from octavo.model.kernels.choice import select_backend
from octavo.model.kernels.cpu.decoder import CpuDecoder, CpuLayer
from octavo.model.kernels.cpu.library import library
from octavo.model.loading.checkpoint import load_model
from octavo.model.ops.invariant import Invariance
from octavo.model.weights.kinds import INT8
from octavo.model.weights.precision import Precision
from tests.model.checkpoints import CPU
from tests.model.pages import Pages
from tests.model.test_families import CASES, oracle

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.skipif(library() is None, reason="the C kernels were not built"),
]
PROMPT = list(range(5, 45))


def load(directory: Path, settings: dict[str, Any]) -> Decoder:
    oracle(directory, settings)
    config = ModelConfig.from_pretrained(directory)
    backend = select_backend(config, CPU, Invariance.CHEAP)  # as quantised weights of a CPU are served
    return load_model(directory, config, backend, Precision(torch.float32, INT8, INT8))


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES)
def test_fused_layers_and_plain_ones_agree(tmp_path: Path, settings: dict[str, Any]) -> None:
    model = load(tmp_path, settings)
    if settings["model_type"] == "phimoe":  # Its norms have a mean, which the kernels do not take.
        assert model.fused is None
        return
    assert isinstance(model.fused, CpuDecoder)
    assert all(isinstance(layer, CpuLayer) and layer.attention is not None for layer in model.fused.layers)
    actual, expected = (Pages(each, 1, len(PROMPT)).prompt(PROMPT) for each in (model, replace(model, fused=None)))
    assert (actual - expected).norm() < 0.02 * expected.norm()
