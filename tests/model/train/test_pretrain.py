"""A sparse model and its twin are trained from nothing on equal terms, and transformers computes the same result."""

import json
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import pytest
import torch

from octavo.model.config import ModelConfig, ModelError
from octavo.model.train import pretrain as module
from octavo.model.train.corpus import Batch, generator, split
from octavo.model.train.dense import DenseModel
from octavo.model.train.pretrain import PretrainOrder, Recipe, pretrain, task_for
from octavo.model.train.pretrain_report import sentence
from octavo.model.train.scratch import Sizes, checkpoint_tensors, decoder_of, feed_forward, first_weights
from octavo.model.train.sparse import Routed
from tests.model.checkpoints import load
from tests.model.pages import Pages
from tests.model.train.training import LENGTH, documents, quiet

SIZES = Sizes(vocabulary=64, hidden=32, layers=2, heads=4, kv_heads=2, wide=48, experts=4, top_k=2, context=64)
RECIPE = Recipe(SIZES, length=LENGTH, rows=4, learning_rate=1e-2)
(TEXT,) = split([("text", documents(20, 60))], 0, LENGTH)
PROMPT = [20, 21, 25, 3, 4]


class Killed(BaseException):
    """A Killed is raised where a process would have ended."""


def order(out: Path, recipe: Recipe = RECIPE, steps: int | None = 4) -> PretrainOrder:
    return PretrainOrder(out, recipe, {"tokenizer.json": "{}"}, steps, minutes=30)


@pytest.mark.parametrize("top_k", [1, 2])
def test_the_twin_has_as_many_active_weights(top_k: int) -> None:
    sizes = replace(SIZES, top_k=top_k)
    sparse, dense = sizes.config(sparse=True), sizes.config(sparse=False)
    routers = 2 * 4 * 32
    assert sparse.num_active_parameters() - routers == dense.num_parameters()
    for config in (sparse, dense):
        assert sum(each.numel() for each in first_weights(config, 0).values()) == config.num_parameters()


@pytest.mark.oracle
@pytest.mark.parametrize("top_k", [1, 2])
def test_the_result_is_what_transformers_computes(tmp_path: Path, top_k: int) -> None:
    from transformers import AutoModelForCausalLM

    pretrain(order(tmp_path / "out", replace(RECIPE, sizes=replace(SIZES, top_k=top_k))), TEXT, quiet)
    model, told = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(told.values()), told
    with torch.inference_mode():
        theirs = model(torch.tensor([PROMPT])).logits[0]
    torch.testing.assert_close(Pages(load(tmp_path / "out"), 1, 8).prompt(PROMPT), theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("top_k", [1, 2])
def test_training_computes_what_is_served_and_gradients_reach_every_weight(tmp_path: Path, top_k: int) -> None:
    config = replace(SIZES, top_k=top_k).config(sparse=True)
    weights = {name: (each * 20).requires_grad_() for name, each in first_weights(config, 0).items()}
    model, seen = DenseModel(decoder_of(config, weights)), list[Routed]()
    tokens = torch.randint(64, (4, 12), generator=generator(0))
    counted = torch.ones_like(tokens, dtype=torch.bool)
    counted[:, 0] = False
    losses = model.losses(Batch(tokens, counted, torch.zeros(4)), feed_forward(model, seen))
    gradients = torch.autograd.grad(losses.mean(), list(weights.values()))
    for name, gradient in zip(weights, gradients, strict=True):
        assert gradient.abs().max() > 0, name
    with torch.inference_mode():
        served = Pages(model.decoder, 4, 12).step([(n, 0, row.tolist()) for n, row in enumerate(tokens)])
    expected = -served.view(4, 12, -1).log_softmax(-1)[:, :-1].gather(2, tokens[:, 1:, None]).flatten()
    torch.testing.assert_close(losses.detach(), expected, rtol=1e-3, atol=1e-3)
    assert len(checkpoint_tensors(model.decoder)) == 2 + 2 * (9 + 3 * 4)


def test_both_see_the_same_rows_and_learn() -> None:
    steps: dict[str, list[torch.Tensor]] = {}
    for name in ("sparse", "dense"):
        task = task_for(RECIPE, name, TEXT, 4, 1.0)
        objective, told = task.loss({key: each.requires_grad_() for key, each in task.start().items()}, 3)
        steps[name] = [objective.detach()]
        assert told == pytest.approx(torch.tensor(64.0).log().item(), abs=0.2), "it begins as chance"
        extra = objective.item() - told
        assert (0.005 < extra < 0.05) if name == "sparse" else extra == pytest.approx(0, abs=1e-6)


def test_the_report_compares_the_two(tmp_path: Path) -> None:
    found = pretrain(order(tmp_path / "out", steps=30), TEXT, quiet)
    assert found == json.loads((tmp_path / "out" / "report.json").read_text())
    assert {name: len(curve) for name, curve in found["curves"].items()} == {"dense": 30, "sparse": 30}
    assert found["losses"]["sparse"] < 3 < found["curves"]["sparse"][0]
    assert found["difference"] == pytest.approx(found["losses"]["sparse"] - found["losses"]["dense"])
    assert [sum(layer) for layer in found["use"]] == [2 * 12 * 15] * 2  # two choices for 15 of 16 tokens
    page = (tmp_path / "out" / "report.html").read_text()
    assert escape(sentence(found)) in page and page.count("<svg") == 2
    assert ModelConfig.from_pretrained(tmp_path / "out").num_experts == 4


def test_its_sentence_says_when_sparse_is_not_better() -> None:
    def told(low: float, high: float) -> str:
        return sentence({"difference": (low + high) / 2, "low": low, "high": high, "documents": 9})

    assert "no difference between the two: +0.0000" in told(-0.1, 0.1)
    assert "loss is lower than that of its dense twin: by 0.2000" in told(-0.3, -0.1)
    assert "loss is higher than that of its dense twin: by 0.2000" in told(0.1, 0.3)


def test_killed_anywhere_it_ends_in_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretrain(order(tmp_path / "whole"), TEXT, quiet)
    monkeypatch.setattr(module, "SAVED_EVERY", 0.0)
    for _ in range(2):
        with pytest.raises(Killed):
            pretrain(order(tmp_path / "out"), TEXT, dying_after(3))
    with pytest.raises(ModelError, match="with another settings"):
        pretrain(order(tmp_path / "out", replace(RECIPE, seed=1)), TEXT, quiet)
    with pytest.raises(ModelError, match="give --steps 4"):
        pretrain(order(tmp_path / "out", steps=5), TEXT, quiet)
    pretrain(order(tmp_path / "out", steps=None), TEXT, quiet)
    for path in (tmp_path / "whole").iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes(), path.name


def dying_after(calls: int) -> Any:
    left = calls

    def tell(what: str, done: int, total: int, note: str) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed

    return tell


def test_too_few_minutes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "seconds_of", lambda task, device: 100.0)
    with pytest.raises(ModelError, match="In 30 minutes there is no time for 10 steps: raise --minutes"):
        pretrain(order(tmp_path / "out", steps=None), TEXT, quiet)
