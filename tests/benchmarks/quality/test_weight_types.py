"""Each weight type changes a model as much as its bits say; the default model is compared in what it is served in."""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from benchmarks.quality.scores import Quality, score, texts
from benchmarks.quality.weight_types import GPU_KINDS, OWN, REGROUPED, experts, load_as, make
from octavo.engine.config import TOKENIZER
from octavo.model.weights.precision import fp16_works
from tests.needs import default_model
from tests.tiny import write_tiny_checkpoint


def test_rounded_experts_are_near_the_exact_ones(tmp_path: Path) -> None:
    """The second layer's down has 8 bits in int4."""
    directory = write_tiny_checkpoint(tmp_path)
    exact = [*experts(load_as(directory, "float32", "none"))]
    for name in (*REGROUPED, *GPU_KINDS):
        least, most = (0.02, 0.1) if "int4" in name else (0.001, 0.05)
        for dense, rounded in zip(exact, experts(make(directory, name, {}).model), strict=True):
            finer = name == "int4-regrouped" and dense.shape[0] < dense.shape[1]
            assert (0.001 if finer else least) < torch.dist(dense, rounded) / dense.norm() < most, name


def test_bytes_of_a_weight(tmp_path: Path) -> None:
    """The tiny model's matrices are padded in what is served, so only regrouped ones and a GPU's are exact."""
    directory = write_tiny_checkpoint(tmp_path)
    found = {name: make(directory, name, {}).bytes_per_weight for name in OWN if name != "fp16"}
    assert found["int8-regrouped"] == 1 + 1 / 32
    assert found["int4-regrouped"] < found["gpu-int8"] == 1.0
    assert found["int8"] > found["int4"] > found["int4-regrouped"]


@pytest.mark.demo
@pytest.mark.timeout(900)
def test_what_each_weight_type_costs_the_default_model() -> None:
    """The bounds hold for so few tokens; the figures over thousands are in benchmarks/results."""
    directory = default_model()
    ids = texts(Tokenizer.from_file(str(directory / TOKENIZER)), 256)["held out"]
    exact = score(load_as(directory, "float32", "none"), ids)
    bounds = {("auto", "int8"): (0.03, 0.15), ("auto", "int4"): (0.05, 0.2)}
    if fp16_works():
        bounds["float16", "none"] = (0.001, 0.001)
    for asked, (increase, logit_rms) in bounds.items():
        found = Quality.of(score(load_as(directory, *asked), ids), exact)
        assert abs(found.increase) < increase and found.logit_rms < logit_rms, (asked, found)
