"""A dense model becomes a sparse one that is served, and interruptions change nothing of it."""

import json
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from octavo.model.config import ModelError
from octavo.model.train import keeper, upcycle
from octavo.model.train.corpus import Domain
from octavo.model.train.deltas import Deltas, dense, merged
from octavo.model.train.upcycle import Order, check
from octavo.model.train.work import alone
from tests.model.checkpoints import load
from tests.model.pages import Pages
from tests.model.train.training import QWEN3, dense_checkpoint, domains, order, quiet

PROMPT = [20, 21, 22, 25, 41, 42, 7, 9]


class Killed(BaseException):
    """A Killed is raised where a process would have ended."""


def train(asked: Order, found: tuple[Domain, ...] | None = None, tell: Any = quiet) -> dict[str, Any]:
    found = found or domains()
    return upcycle.upcycle(asked, check(asked, tuple(domain.name for domain in found)), found, tell)


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def logits(directory: Path) -> torch.Tensor:
    return Pages(load(directory), 1, len(PROMPT)).prompt(PROMPT)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dense_checkpoint(tmp_path_factory.mktemp("source") / "dense")


@pytest.fixture(scope="module")
def whole(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the result of a training that nobody has disturbed."""
    out = tmp_path_factory.mktemp("whole") / "sparse"
    train(order(source, out, deltas=out.with_name("experts")))
    return out


@pytest.mark.parametrize("overrides", [{}, {"tie_word_embeddings": True}, {"model_type": "mistral"}, QWEN3])
def test_identical_experts_are_the_dense_model(tmp_path: Path, overrides: dict[str, Any]) -> None:
    source = dense_checkpoint(tmp_path / "dense", **overrides)
    train(order(source, tmp_path / "sparse", steps=1, learning_rate=0.0, baseline=False))
    torch.testing.assert_close(logits(tmp_path / "sparse"), logits(source), rtol=1e-5, atol=1e-5)
    tensors = load_layers(tmp_path / "sparse")
    assert sum("experts" in name for name in tensors) == 2 * 3 * 3


@pytest.mark.oracle
@pytest.mark.parametrize("overrides", [{}, QWEN3 | {"tie_word_embeddings": True}])
def test_transformers_loads_the_result_and_computes_the_same(tmp_path: Path, overrides: dict[str, Any]) -> None:
    from transformers import AutoModelForCausalLM

    source = dense_checkpoint(tmp_path / "dense", **overrides)
    train(order(source, tmp_path / "sparse", baseline=False))
    model, told = AutoModelForCausalLM.from_pretrained(tmp_path / "sparse", output_loading_info=True)
    assert not any(told.values()), told
    with torch.inference_mode():
        theirs = model(torch.tensor([PROMPT])).logits[0]
    torch.testing.assert_close(logits(tmp_path / "sparse"), theirs, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(theirs, logits(source), atol=1e-3), "training changed something"


def test_the_report_says_what_happened(whole: Path) -> None:
    found = json.loads((whole / "report.json").read_text())
    assert [each["name"] for each in found["experts"]] == ["original", "code", "law"]
    assert (found["steps"], found["seed"], found["tokens"]) == (4, 0, 2 * 4 * 2 * 16)
    for domain in found["domains"]:
        assert domain["documents"] == {"train": 18, "validation": 2, "test": 4}
        assert sorted(domain["losses"]) == ["base", "random", "single", "sparse", "twin"]
        assert sum(domain["use"]) == pytest.approx(1) and sum(domain["first"]) == pytest.approx(1)
        assert domain["test_tokens"] == 4 * 15
    overall = found["overall"]
    assert overall["against"]["base"]["documents"] == 8
    expected = sum(domain["losses"]["base"] - domain["losses"]["sparse"] for domain in found["domains"]) / 2
    assert overall["against"]["base"]["difference"] == pytest.approx(-expected)
    assert {name: len(curve) for name, curve in found["curves"].items()} == {
        "code": 4,
        "law": 4,
        "dense twin": 8,
        "routers": 4,
    }
    assert len(found["layers"]["entropy"]) == len(found["layers"]["information"]) == 2


def test_longer_training_beats_the_base_and_routes_by_domain(source: Path, tmp_path: Path) -> None:
    found = train(order(source, tmp_path / "sparse", steps=60, rank=4, learning_rate=2e-2, baseline=False))
    against = found["overall"]["against"]["base"]
    assert against["verdict"] == "lower" and against["difference"] < -0.5
    for number, domain in enumerate(found["domains"], start=1):
        assert max(range(3), key=domain["first"].__getitem__) == number
    assert found["layers"]["information"][1] > found["layers"]["information_by_chance_95"][1]


def test_the_deltas_are_the_model(source: Path, whole: Path) -> None:
    kept = Deltas.read(whole.with_name("experts"))
    experts, tensors, base = dense(kept.experts), load_layers(whole), load_file(source / "model.safetensors")
    assert kept.about == json.loads((whole / "report.json").read_text())
    for layer in range(2):
        assert torch.equal(tensors[f"model.layers.{layer}.block_sparse_moe.gate.weight"], kept.routers[layer])
        for part, word in {"gate": "w1", "up": "w3", "down": "w2"}.items():
            weight = base[f"model.layers.{layer}.mlp.{part}_proj.weight"]
            prefix = f"model.layers.{layer}.block_sparse_moe.experts"
            assert torch.equal(tensors[f"{prefix}.0.{word}.weight"], weight), "the original stays"
            for number in (1, 2):
                own = {name: each[number - 1, layer] for name, each in experts.items()}
                assert torch.equal(tensors[f"{prefix}.{number}.{word}.weight"], merged(weight, own, part))


def load_layers(directory: Path) -> dict[str, torch.Tensor]:
    return {name: each for path in directory.glob("*.safetensors") for name, each in load_file(path).items()}


def test_only_the_deltas_may_be_wanted(source: Path, whole: Path, tmp_path: Path) -> None:
    train(replace(order(source, tmp_path, deltas=tmp_path / "experts.safetensors"), out=None))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "experts-report.html",
        "experts-report.json",
        "experts.safetensors",
    ]
    assert (tmp_path / "experts.safetensors").read_bytes() == whole.with_name("experts").read_bytes()


def test_killed_anywhere_it_goes_on_and_ends_in_the_same_bytes(
    source: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upcycle, "SAVED_EVERY", 0.0)  # seconds: after each step
    asked, runs = order(source, tmp_path / "sparse", deltas=tmp_path / "experts"), 0
    while not (tmp_path / "sparse").exists():
        runs += 1
        try:
            train(asked, tell=dying_after(3 + 2 * runs))
        except Killed:
            assert not (tmp_path / "sparse").exists() and not (tmp_path / "experts").exists()
        assert runs < 20, "it does not come to its end"
    assert runs > 3
    assert contents(tmp_path / "sparse") == contents(whole)
    assert (tmp_path / "experts").read_bytes() == whole.with_name("experts").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["experts", "sparse"]


def dying_after(calls: int) -> Any:
    """Returns what raises Killed when it is called for the n-th time with progress of training or measuring."""
    left = calls

    def tell(what: str, done: int, total: int, note: str) -> None:
        nonlocal left
        left -= bool(note)
        if left < 0:
            raise Killed

    return tell


def test_another_seed_gives_another_model(source: Path, whole: Path, tmp_path: Path) -> None:
    train(order(source, tmp_path / "sparse", seed=1, baseline=False), domains(seed=1))
    assert (
        contents(tmp_path / "sparse")["model-00002-of-00003.safetensors"]
        != (contents(whole)["model-00002-of-00003.safetensors"])
    )


def test_an_unfinished_training_is_not_continued_with_something_else(source: Path, tmp_path: Path) -> None:
    asked = order(source, tmp_path / "sparse")
    with pytest.raises(Killed):
        train(asked, tell=dying_after(3))
    for other, found, words in (
        (order(source, tmp_path / "sparse", rank=3), domains(), "with another settings: repeat its command"),
        (asked, domains(("code", "law", "songs")), "with another text"),
        (order(source, tmp_path / "sparse", steps=5), domains(), "of 4 steps: give --steps 4"),
    ):
        with pytest.raises(ModelError, match=words):
            train(other, found)
    with pytest.raises(Killed):
        train(order(source, tmp_path / "sparse", steps=None, minutes=0.1), tell=dying_after(2))


def test_minutes_become_steps_once(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10**6))
    monkeypatch.setattr(upcycle, "measured", lambda bench: upcycle.Costs(expert=2.0, router=1.0, token=0.0))
    monkeypatch.setattr(upcycle.time, "monotonic", lambda: float(next(clock)))
    asked = order(source, tmp_path / "sparse", steps=None, minutes=2.0)
    with pytest.raises(Killed):
        train(asked, tell=dying_after(1))
    plan = json.loads((asked.work / "plan.json").read_text())
    assert plan["steps"] in (12, 13)  # 120 seconds, of which a few passed; 2 experts and the twin's 2: 9 seconds a step
    with pytest.raises(ModelError, match=r"The time is too short: 10 steps .* take 0\.\d minutes more here"):
        train(order(source, tmp_path / "other", steps=None, minutes=1.4))


def test_two_processes_do_not_share_a_training(source: Path, tmp_path: Path) -> None:
    asked = order(source, tmp_path / "sparse")
    with alone(asked.work, asked.target), pytest.raises(ModelError, match="Another process trains"):
        train(asked)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"length": 1000}, "--length 1000 is longer than the 512 positions"),
        ({"experts": 2}, "2 domains and the original need 3 experts"),
    ],
)
def test_orders_are_checked_at_once(source: Path, tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        check(order(source, tmp_path / "sparse", **changes), ("code", "law"))


def test_what_is_there_is_never_overwritten(source: Path, tmp_path: Path) -> None:
    (tmp_path / "sparse").mkdir()
    check(order(source, tmp_path / "sparse"), ("code",))
    (tmp_path / "sparse" / "thesis.txt").write_text("mine")
    with pytest.raises(ModelError, match="is there already: give --out"):
        check(order(source, tmp_path / "sparse"), ("code",))
    with pytest.raises(ModelError, match="is there already: give --deltas"):
        check(order(source, tmp_path / "new", deltas=tmp_path / "sparse" / "thesis.txt"), ("code",))


def test_damaged_weights_are_found_before_any_text_is_read(source: Path, tmp_path: Path) -> None:
    shutil.copytree(source, tmp_path / "dense")
    weights = tmp_path / "dense" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(ModelError, match="is damaged or incomplete"):
        check(order(tmp_path / "dense", tmp_path / "sparse"), ("code",))


def test_a_small_disk_is_noticed_first(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(upcycle.shutil, "disk_usage", lambda path: usage(10**6, 10**6 - 10**4, 10**4))
    with pytest.raises(ModelError, match=r"The training needs 0\.\d GB in .*, where 0\.0 GB are free: make room"):
        check(order(source, tmp_path / "sparse"), ("code",))


def test_a_full_disk_is_a_sentence_and_the_training_goes_on_later(
    source: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = order(source, tmp_path / "sparse")
    write, written = keeper.write_whole, 0

    def full(path: Path, held: bytes) -> None:
        nonlocal written
        written += 1
        if written > 5:
            raise OSError(28, "No space left on device", str(path))
        write(path, held)

    monkeypatch.setattr(keeper, "write_whole", full)
    with pytest.raises(ModelError, match="cannot be written .No space left on device.: make room there .* goes on"):
        train(asked)
    monkeypatch.undo()
    train(asked)
    found, expected = contents(tmp_path / "sparse"), contents(whole)
    assert found == expected


def test_a_loss_that_is_no_number_ends_the_training(source: Path, tmp_path: Path) -> None:
    shutil.copytree(source, tmp_path / "dense")
    with pytest.raises(ModelError, match="lower --learning-rate"):
        train(order(tmp_path / "dense", tmp_path / "sparse", learning_rate=1e30, rank=2))
