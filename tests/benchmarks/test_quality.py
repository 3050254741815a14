"""The comparison is checked by hand, and the default model is compared in every weight type."""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from benchmarks import quality
from benchmarks.quality import Quality, Scores
from octavo.engine.config import TOKENIZER
from octavo.model.weights.precision import fp16_works
from tests.needs import default_model
from tests.tiny import write_tiny_checkpoint

IDS = [(7 * n) % 256 for n in range(400)]


def test_what_is_compared() -> None:
    exact = Scores(torch.tensor([1.0, 3.0]), torch.tensor([[1.0, -1.0]]))
    found = Quality.of(Scores(torch.tensor([1.1, 3.3]), torch.tensor([[1.0, -1.5]])), exact)
    assert found.perplexity == pytest.approx(9.025, rel=1e-4)  # e^2.2
    assert found.increase == pytest.approx(0.2214, rel=1e-3)  # e^0.2 - 1
    assert found.uncertainty == pytest.approx(0.1, rel=1e-3)
    assert (found.logit_rms, found.logit_most) == pytest.approx((0.125**0.5, 0.5))


def test_chunks_and_windows_are_what_one_pass_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = quality.load_as(write_tiny_checkpoint(tmp_path), "float32", "none")
    whole = quality.score(model, IDS)
    assert (whole.losses.shape, whole.logits.shape) == ((399,), (32 + 18, 256))  # every eighth of 256 and of 143
    monkeypatch.setattr(quality, "CHUNK", 40)
    torch.testing.assert_close(quality.score(model, IDS).losses, whole.losses, rtol=1e-4, atol=1e-4)
    monkeypatch.setattr(quality, "WINDOW", 160)
    assert torch.equal(quality.score(model, IDS).losses[160:320], quality.score(model, IDS[160:321]).losses)


def test_regrouped_experts_are_near_the_exact_ones(tmp_path: Path) -> None:
    directory = write_tiny_checkpoint(tmp_path)
    exact, regrouped = (quality.load_as(directory, "float32", "none") for _ in range(2))
    quality.regroup(regrouped)
    pairs = zip(exact.layers, regrouped.layers, strict=True)
    for before, after in ((one.moe.experts, other.moe.experts) for one, other in pairs):
        for dense, rounded in zip((*before.gate_up, *before.down), (*after.gate_up, *after.down), strict=True):
            assert 0.02 < torch.dist(dense, rounded) / dense.norm() < 0.1


@pytest.mark.demo
@pytest.mark.timeout(900)
def test_what_each_weight_type_costs_the_default_model() -> None:
    """The bounds hold for so few tokens; the figures over thousands are in benchmarks/results."""
    directory = default_model()
    ids = quality.texts(Tokenizer.from_file(str(directory / TOKENIZER)), 256)["held out"]
    exact = quality.score(quality.load_as(directory, "float32", "none"), ids)
    bounds = {("auto", "int8"): (0.03, 0.15), ("auto", "int4"): (0.05, 0.2)}
    if fp16_works():
        bounds["float16", "none"] = (0.001, 0.001)
    for asked, (increase, logit_rms) in bounds.items():
        found = Quality.of(quality.score(quality.load_as(directory, *asked), ids), exact)
        assert abs(found.increase) < increase and found.logit_rms < logit_rms, (asked, found)
