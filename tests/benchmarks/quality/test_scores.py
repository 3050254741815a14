"""The comparison is checked by hand."""

from pathlib import Path

import pytest
import torch

from benchmarks.quality import scores
from benchmarks.quality.scores import Quality, Scores
from benchmarks.quality.weight_types import load_as
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
    model = load_as(write_tiny_checkpoint(tmp_path), "float32", "none")
    whole = scores.score(model, IDS)
    assert (whole.losses.shape, whole.logits.shape) == ((399,), (32 + 18, 256))  # every eighth of 256 and of 143
    monkeypatch.setattr(scores, "CHUNK", 40)
    torch.testing.assert_close(scores.score(model, IDS).losses, whole.losses, rtol=1e-4, atol=1e-4)
    monkeypatch.setattr(scores, "WINDOW", 160)
    assert torch.equal(scores.score(model, IDS).losses[160:320], scores.score(model, IDS[160:321]).losses)
