"""Compares CpuDecoder with the plain layers, also if the kernels do not take one of them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from octavo.model.config import ModelConfig
from octavo.model.decoder import Decoder, DecoderLayer
from octavo.model.kernels.choice import select_backend
from octavo.model.kernels.cpu.decoder import CpuDecoder, CpuLayer
from octavo.model.kernels.cpu.library import library
from octavo.model.layers import LayerNorm
from octavo.model.loading.checkpoint import load_model
from octavo.model.moe import SharedExpert
from octavo.model.ops.invariant import Invariance, costs_little
from octavo.model.routes import Routes
from octavo.model.weights.kinds import INT4, INT8, Kind
from octavo.model.weights.precision import Precision
from tests.model.checkpoints import CPU
from tests.model.pages import Pages
from tests.tiny import write_tiny_checkpoint

pytestmark = pytest.mark.skipif(library() is None, reason="the C kernels were not built")
PROMPT = list(range(5, 25))


def load(directory: Path, precision: Precision, **shape: object) -> Decoder:
    config = ModelConfig.from_pretrained(write_tiny_checkpoint(directory, **shape))
    return load_model(directory, config, select_backend(config, CPU), precision)


def error(one: Decoder, other: Decoder) -> float:
    """Returns the relative difference of two models' logits."""
    ours, theirs = (Pages(model, sequences=1, length=len(PROMPT)).prompt(PROMPT) for model in (one, other))
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.parametrize("model_type", ["mixtral", "mistral"])
@pytest.mark.parametrize("experts", [INT8, INT4])
def test_it_computes_what_the_layers_compute(tmp_path: Path, experts: Kind, model_type: str) -> None:
    model = load(tmp_path, Precision(torch.float32, experts, INT8), model_type=model_type)
    assert isinstance(model.fused, CpuDecoder)
    assert all(isinstance(layer, CpuLayer) for layer in model.fused.layers)
    assert error(model, replace(model, fused=None)) < 0.02


def test_experts_that_the_kernels_do_not_take_run_as_they_are(tmp_path: Path) -> None:
    model = load(tmp_path, Precision(torch.float32, INT8, INT8))
    first, second = model.layers
    held = replace(first.moe.experts, down=tuple(matrix.dense() for matrix in first.moe.experts.down))
    mixed = (replace(first, moe=replace(first.moe, experts=held)), second)
    fused = CpuDecoder.of(mixed, library())
    assert [(layer.attention is None, layer.experts is None) for layer in fused.layers] == [
        (False, True),
        (False, False),
    ]
    assert error(replace(model, layers=mixed, fused=fused), replace(model, layers=mixed, fused=None)) < 0.02


@pytest.mark.parametrize("without", ["attention", "experts", "both"])
def test_either_half_of_a_layer_runs_as_it_is_where_the_kernels_do_not_take_it(tmp_path: Path, without: str) -> None:
    """A norm with a mean is taken in neither half, and a shared expert not in the second."""
    model = load(tmp_path, Precision(torch.float32, INT8, INT8))
    torch.manual_seed(0)
    first, second = model.layers
    other = LayerNorm(first.input_norm.weight, torch.randn(model.config.hidden_size), 1e-5)
    changes: dict[str, DecoderLayer] = {
        "attention": replace(first, input_norm=other),
        "experts": replace(first, moe=replace(first.moe, shared=shared_expert(model))),
        "both": replace(first, input_norm=other, post_norm=other),
    }
    layers = (changes[without], second)
    fused = CpuDecoder.of(layers, library())
    assert fused is not None
    if without == "both":
        assert isinstance(fused.layers[0], DecoderLayer)
    else:
        taken = fused.layers[0].attention is not None, fused.layers[0].experts is not None
        assert taken == (without == "experts", without == "attention")
    changed = replace(model, layers=layers, fused=fused)
    assert error(changed, replace(changed, fused=None)) < 0.02
    assert error(changed, model) > 0.1


def shared_expert(model: Decoder) -> SharedExpert:
    one = model.layers[0].moe.experts
    return SharedExpert(
        replace(one, gate_up=one.gate_up[:1], down=one.down[:1]), torch.randn(1, model.config.hidden_size)
    )


def test_a_token_is_the_same_bits_alone_and_in_a_prompt_where_torch_computes_a_half(tmp_path: Path) -> None:
    """Torch takes each row by itself in what is left to it beside quantised weights: routers and gates."""
    precision = Precision(torch.float32, INT8, INT8)
    assert costs_little(precision)
    config = ModelConfig.from_pretrained(write_tiny_checkpoint(tmp_path))
    model = load_model(tmp_path, config, select_backend(config, CPU, Invariance.CHEAP), precision)
    first, second = model.layers
    other = LayerNorm(first.input_norm.weight, torch.randn(config.hidden_size), 1e-5)
    shared = replace(first.moe, shared=shared_expert(model))
    for changed in (replace(first, input_norm=other, post_norm=other), replace(first, moe=shared)):
        layers = changed, second
        pages = Pages(replace(model, layers=layers, fused=CpuDecoder.of(layers, library())), 2, len(PROMPT))
        alone = [pages.step([(1, n, [token])]) for n, token in enumerate(PROMPT)]
        assert torch.equal(torch.cat(alone), pages.prompt(PROMPT))


def test_each_layer_has_its_own_window(tmp_path: Path) -> None:
    model = load(tmp_path, Precision(torch.float32, INT8, INT8), sliding_window=3)
    first, second = model.layers
    layers = replace(first, attention=replace(first.attention, window=None)), second
    config = replace(model.config, windowed=(False, True))
    mixed = replace(model, config=config, layers=layers, fused=CpuDecoder.of(layers, library()))
    assert error(mixed, replace(mixed, fused=None)) < 0.02
    assert error(mixed, model) > 0.1


def test_where_no_layer_is_taken_there_is_none(tmp_path: Path) -> None:
    assert load(tmp_path, Precision.plain(torch.float32)).fused is None


def states(model: Decoder, addends: Tensor | None = None) -> tuple[Tensor, Routes]:
    """Returns the states of a prompt's tokens, and the experts that they were sent to."""
    pages = Pages(model, sequences=1, length=len(PROMPT))
    with torch.inference_mode():
        found, routes = model.states(replace(pages.batch([(0, 0, PROMPT)]), addends=addends), pages.cache)
    assert routes is not None
    return found, routes


LAYERS, EXPERTS = 3, 6


@pytest.fixture
def sharp(tmp_path: Path) -> Decoder:
    shape = {"num_hidden_layers": LAYERS, "num_local_experts": EXPERTS, "sharp": 8.0}
    return load(tmp_path, Precision(torch.float32, INT8, INT8), **shape)


def test_the_routes_are_those_of_the_layers_on_every_level(sharp: Decoder) -> None:
    """The margins of the layers' routers are far beyond what the kernels' rounding does to their logits."""
    kernels = library()
    assert kernels is not None
    before, (_, wanted) = kernels.level, states(replace(sharp, fused=None))
    assert wanted.ids.shape == (len(PROMPT), LAYERS, 2)
    assert len({tuple(each) for each in wanted.ids.flatten(0, 1).tolist()}) > 8  # The tokens differ.
    for level in kernels.levels():
        if kernels.set_level(level):
            _, routes = states(sharp)
            assert routes.ids.dtype == torch.uint8 and routes.ids.equal(wanted.ids), level
            assert (routes.weights.dtype, routes.weights.shape) == (torch.float16, wanted.weights.shape)
            torch.testing.assert_close(routes.weights, wanted.weights, rtol=0, atol=0.05)
    kernels.set_level(before)


@pytest.mark.parametrize("plain", [0, 1, 2])
def test_a_layer_that_the_kernels_do_not_take_tells_its_routes_in_its_turn(sharp: Decoder, plain: int) -> None:
    layers = list(sharp.layers)
    moe = layers[plain].moe
    down = tuple(matrix.dense() for matrix in moe.experts.down)
    layers[plain] = replace(layers[plain], moe=replace(moe, experts=replace(moe.experts, down=down)))
    mixed = replace(sharp, layers=tuple(layers), fused=CpuDecoder.of(layers, library()))
    assert mixed.fused is not None
    (_, routes), (_, wanted) = states(mixed), states(sharp)
    # What is not quantised in one layer may change a close choice; in another order, one in fifteen would be the same.
    assert (routes.ids == wanted.ids).float().mean() > 0.9


def test_addends_change_the_choice_of_each_layer_and_row(sharp: Decoder) -> None:
    addends = torch.zeros(LAYERS, len(PROMPT), EXPERTS)
    addends[0, ::2, 1] = addends[2, 5:, :4] = -torch.inf
    addends[1, :, 3] = 100
    (free, before), (changed, routes) = states(sharp), states(sharp, addends)
    theirs, wanted = states(replace(sharp, fused=None), addends)
    assert routes.ids.equal(wanted.ids) and not routes.ids.equal(before.ids)
    assert (changed - theirs).norm() < 0.02 * theirs.norm() < 0.2 * (changed - free).norm()
    assert not (routes.ids[::2, 0] == 1).any() and (routes.ids[:, 1, 0] == 3).all() and (routes.ids[5:, 2] >= 4).all()


def test_a_dense_model_has_no_routes(tmp_path: Path) -> None:
    model = load(tmp_path, Precision(torch.float32, INT8, INT8), model_type="mistral")
    pages = Pages(model, sequences=1, length=len(PROMPT))
    assert model.states(pages.batch([(0, 0, PROMPT)]), pages.cache)[1] is None


def test_many_experts_have_longer_ids(tmp_path: Path) -> None:
    shape = {"num_local_experts": 300, "num_experts_per_tok": 3, "sharp": 8.0}
    model = load(tmp_path, Precision(torch.float32, INT8, INT8), **shape)
    _, routes = states(model)
    assert routes.ids.dtype == torch.int16 and routes.ids.max() > 255
    assert routes.ids[:, 0].equal(states(replace(model, fused=None))[1].ids[:, 0])
