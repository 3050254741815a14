"""Low-rank changes begin as nothing, are applied as they are merged, and come back from their file."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from octavo.model.config import ModelError
from octavo.model.train.corpus import generator
from octavo.model.train.deltas import (
    Adapted,
    Delta,
    Deltas,
    by_layer,
    dense,
    merged,
    new_delta,
    rounded,
    scaled,
    seeded,
    together,
)
from octavo.model.train.dense import DenseModel
from tests.model.train.training import dense_checkpoint, dense_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> DenseModel:
    return dense_model(dense_checkpoint(tmp_path_factory.mktemp("dense") / "dense"))


def random_delta(model: DenseModel, seed: int = 0, rank: int = 3) -> Delta:
    random = generator(seed, "test")
    delta = new_delta(model.config, rank, random)
    return {name: torch.randn(each.shape, generator=random) * 0.2 for name, each in delta.items()}


def test_it_begins_as_nothing_and_depends_on_seed_and_name(model: DenseModel) -> None:
    x = torch.randn(5, 32, generator=generator(0))
    delta = seeded(model.config, 4, 0, "code")
    for layer in range(2):
        assert torch.equal(Adapted.of(model, delta)(layer, x), model.own(layer, x))
    assert delta["gate.a"].std().item() == pytest.approx(32**-0.5, rel=0.2)
    for other in (seeded(model.config, 4, 1, "code"), seeded(model.config, 4, 0, "law")):
        assert not torch.equal(other["gate.a"], delta["gate.a"])


def test_applied_is_merged(model: DenseModel) -> None:
    delta, x = random_delta(model), torch.randn(5, 32, generator=generator(0))
    for layer in range(2):
        own = by_layer(delta)[layer]
        gate, up = model.gate_up(layer).chunk(2)
        inner = F.silu(F.linear(x, merged(gate, own, "gate"))) * F.linear(x, merged(up, own, "up"))
        expected = F.linear(inner, merged(model.down(layer), own, "down"))
        torch.testing.assert_close(Adapted.of(model, delta)(layer, x), expected, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(expected, model.own(layer, x), atol=1e-2)


def test_a_scale_multiplies_the_change_of_each_matrix(model: DenseModel) -> None:
    delta = by_layer(random_delta(model))[0]
    half = by_layer(scaled(random_delta(model), 0.5))[0]
    for part in ("gate", "up", "down"):
        torch.testing.assert_close(half[f"{part}.b"] @ half[f"{part}.a"], delta[f"{part}.b"] @ delta[f"{part}.a"] / 2)


def test_eight_bits_are_half_a_step_off_at_most(model: DenseModel) -> None:
    delta = random_delta(model)
    for name, stored in rounded(delta).items():
        assert stored.codes.dtype == torch.int8 and stored.codes.abs().max() == 127
        assert ((stored.dense() - delta[name]).abs() <= stored.scales / 2 + 1e-7).all()
        rank_axis = 1 if name.endswith(".a") else 2
        assert stored.scales.shape[rank_axis] == 3 and stored.scales.numel() == 2 * 3
    zero = rounded({"gate.b": torch.zeros(2, 48, 3)})["gate.b"].dense()
    assert torch.equal(zero, torch.zeros(2, 48, 3))


def test_the_file_gives_back_the_same_bits(model: DenseModel, tmp_path: Path) -> None:
    stored = together([rounded(random_delta(model, seed)) for seed in range(2)])
    routers = torch.randn(2, 3, 32, generator=generator(1)).bfloat16()
    Deltas(stored, routers, {"base": "tiny", "seed": 3}).write(tmp_path / "experts")
    back = Deltas.read(tmp_path / "experts")
    assert back.about == {"base": "tiny", "seed": 3} and torch.equal(back.routers, routers)
    for name, each in dense(stored).items():
        assert torch.equal(dense(back.experts)[name], each)
        assert torch.equal(each[1], rounded(random_delta(model, 1))[name].dense())


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no tensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "weights")
    for name, words in {"text": "cannot be read", "weights": "holds no experts", "absent": "cannot be read"}.items():
        with pytest.raises(ModelError, match=words):
            Deltas.read(tmp_path / name)
