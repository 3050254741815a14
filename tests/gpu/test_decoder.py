"""Compares GpuDecoder with the plain composition of torch's operations, for each kind of weight."""

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from octavo.model.batch import ForwardBatch
from octavo.model.config import ModelConfig
from octavo.model.decoder import Decoder, DecoderLayer
from octavo.model.families import Swiglu
from octavo.model.kernels.choice import select_backend
from octavo.model.kernels.gpu.configs import arch_of
from octavo.model.kernels.gpu.decoder import GpuDecoder, are_taken, partial_outputs
from octavo.model.kernels.gpu.ops import GpuOps
from octavo.model.kernels.gpu.router import Routed, route
from octavo.model.layers import LayerNorm, RMSNorm
from octavo.model.loading.checkpoint import load_model
from octavo.model.moe import SharedExpert
from octavo.model.ops.experts import experts
from octavo.model.ops.seams import TORCH
from octavo.model.routes import Routes
from octavo.model.weights.forms import ExpertWeights
from octavo.model.weights.kinds import Kind, Offset, Scale
from octavo.model.weights.memory import zeros_on
from octavo.model.weights.precision import Precision
from octavo.model.weights.row_major import Fp8RowMajor, Int4RowMajor, Int8RowMajor, RowMajorWeight
from octavo.model.weights.row_major_kinds import row_major_form
from octavo.model.weights.stack import Stack
from tests.gpu.stacks import ragged, random_held
from tests.model.pages import Pages
from tests.tiny import write_tiny_checkpoint

SHAPE = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
FP32, BF16 = torch.float32, torch.bfloat16
Rows = Sequence[tuple[int, int, Sequence[int]]]


class DevicePages(Pages):
    """DevicePages make batches on the model's device."""

    def batch(self, rows: Rows, every: bool = True) -> ForwardBatch:
        made = super().batch(rows, every)
        moved = {field.name: getattr(made, field.name) for field in fields(made)}
        return ForwardBatch(
            **{name: each.to(self.model.device) if isinstance(each, Tensor) else each for name, each in moved.items()}
        )


def load(
    directory: Path, device: torch.device, dtype: torch.dtype, kind: torch.dtype | type[RowMajorWeight], **shape: object
) -> Decoder:
    config = ModelConfig.from_pretrained(write_tiny_checkpoint(directory, **SHAPE | shape))
    return load_model(directory, config, select_backend(config, device), Precision(dtype, kind, dtype))


def plain(model: Decoder) -> Decoder:
    return replace(model, ops=TORCH, fused=None)


def arch(model: Decoder) -> str:
    return arch_of(torch.cuda.get_device_capability()) if model.device.type == "cuda" else "sm_90"


def seams(model: Decoder) -> Decoder:
    """Returns the plain composition over the kernels."""
    return replace(plain(model), ops=GpuOps(model.config, 4, arch(model)).ops())


def fused(model: Decoder) -> Decoder:
    kernels = seams(model)
    return replace(kernels, fused=GpuDecoder.of(kernels.layers, model.config.rms_norm_eps, arch(model)))


def tokens(count: int, seed: int = 0) -> list[int]:
    return torch.randint(0, 256, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


STEPS: tuple[Rows, ...] = (  # one step after the other, over three sequences
    [(0, 0, tokens(5))],
    [(0, 5, tokens(1, 1))],  # a lone stream
    [(1, 0, tokens(3, 2)), (0, 6, tokens(1, 3)), (2, 0, tokens(2, 4))],
    [(0, 7, tokens(1, 5)), (2, 2, tokens(1, 6)), (1, 3, tokens(1, 7))],
)


def logits(model: Decoder, steps: Sequence[Rows] = STEPS) -> list[Tensor]:
    pages = DevicePages(model, sequences=3, length=8)
    return [pages.step(step) for step in steps]


def error(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """Returns the root of the mean squared difference of all logits, relative to that of their values."""
    one, other = torch.cat(list(ours)).double(), torch.cat(list(theirs)).double()
    return ((one - other).square().mean() / other.square().mean()).sqrt().item()


def test_a_model_runs_alone_and_in_company(tmp_path: Path, device: torch.device) -> None:
    model = load(tmp_path, device, FP32, FP32)
    assert error(logits(fused(model)), logits(plain(model))) < 1e-5


@pytest.mark.parametrize("kind", [Int8RowMajor, Int4RowMajor, Fp8RowMajor])
def test_experts_in_few_bits(tmp_path: Path, device: torch.device, kind: type[RowMajorWeight]) -> None:
    if kind is Fp8RowMajor and device.type == "cuda" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("the device has no fp8")
    model = load(tmp_path, device, FP32, kind)
    assert error(logits(fused(model), STEPS[:2]), logits(plain(model), STEPS[:2])) < 1e-5


def test_the_seams_alone(tmp_path: Path, device: torch.device) -> None:
    model = load(tmp_path, device, FP32, FP32)
    assert error(logits(seams(model), STEPS[:2]), logits(plain(model), STEPS[:2])) < 1e-5


def test_in_bfloat16_they_are_as_near_to_the_exact_result_as_torch_is(tmp_path: Path, device: torch.device) -> None:
    model = load(tmp_path, device, BF16, BF16)
    exact = logits(plain(load(tmp_path / "exact", device, FP32, FP32)), STEPS[:1])
    theirs = error(logits(plain(model), STEPS[:1]), exact)
    assert 0 < error(logits(fused(model), STEPS[:1]), exact) < 1.5 * theirs < 0.3


@pytest.mark.parametrize("shape", [{"model_type": "mistral", "sliding_window": 7}, {"model_type": "llama"}])
def test_dense_models(tmp_path: Path, device: torch.device, shape: dict[str, object]) -> None:
    model = load(tmp_path, device, FP32, FP32, **shape)
    assert error(logits(fused(model), STEPS[:2]), logits(plain(model), STEPS[:2])) < 1e-5


def test_the_experts_that_torch_would_choose_are_chosen(
    tmp_path: Path, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(tmp_path, device, FP32, FP32)
    theirs: list[list[list[int]]] = []
    ours: list[list[list[int]]] = []
    told: list[Routes] = []

    def experts(x: Tensor, ids: Tensor, weights: Tensor, expert_weights: ExpertWeights) -> Tensor:
        theirs.append(ids.tolist())
        return TORCH.experts(x, ids, weights, expert_weights)

    def watched_route(*arguments: Any) -> Routed:
        routed = route(*arguments)
        ours.append(routed.ids.tolist())
        return routed

    monkeypatch.setattr("octavo.model.kernels.gpu.decoder.route", watched_route)
    for each in (replace(plain(model), ops=replace(TORCH, experts=experts)), fused(model)):
        pages = DevicePages(each, sequences=1, length=8)
        routes = each.states(pages.batch(STEPS[0]), pages.cache)[1]
        assert routes is not None
        told.append(routes)
    assert ours == theirs and len(ours) == model.config.num_hidden_layers
    assert [each.ids.transpose(0, 1).tolist() for each in told] == [theirs] * 2
    torch.testing.assert_close(told[1].weights, told[0].weights, rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize(("experts", "top_k"), [(4, 2), (12, 3)])  # The router has two ways.
def test_an_addend_changes_the_choice_of_each_layer(
    tmp_path: Path, device: torch.device, experts: int, top_k: int
) -> None:
    loaded = load(tmp_path, device, FP32, FP32, num_local_experts=experts, num_experts_per_tok=top_k)
    found = []
    for model in (plain(loaded), fused(loaded)):
        pages = DevicePages(model, sequences=3, length=8)
        batch = pages.batch(STEPS[0])
        free = model.states(batch, pages.cache)
        addends = torch.randn(2, 5, experts, generator=torch.Generator().manual_seed(1)).to(device)
        addends[0, 2:, : experts - top_k] = -torch.inf
        addends[1, 4, 1] = -torch.inf
        states, routes = model.states(replace(batch, addends=addends), pages.cache)
        assert routes is not None and free[1] is not None
        assert routes.ids[2:, 0].min() >= experts - top_k and not (routes.ids[4, 1] == 1).any()
        assert not routes.ids.equal(free[1].ids)
        found.append((states, routes))
    (wanted, theirs), (actual, ours) = found
    assert ours.ids.equal(theirs.ids)
    torch.testing.assert_close(ours.weights, theirs.weights, rtol=2e-3, atol=1e-3)
    assert error([actual], [wanted]) < 1e-5


def enriched(model: Decoder, norm: str, seed: int) -> Decoder:
    """Gives each layer of a model what families add to Mixtral, with random numbers that all matter."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int, mean: float = 0.0) -> Tensor:
        return (mean + torch.randn(shape, generator=generator)).to(model.device, FP32)

    def layer(n: int, old: DecoderLayer) -> DecoderLayer:
        held, router, eps = old.attention, old.moe.router, model.config.rms_norm_eps
        assert router is not None
        widths = [heads * held.head_dim for heads in (held.num_heads, held.num_kv_heads)]
        sizes = [held.head_dim] * 2 if norm == "head" else widths
        attention = replace(
            held,
            qkv_bias=random(widths[0] + 2 * widths[1]),
            o_bias=random(model.config.hidden_size),
            q_norm=RMSNorm.create(random(sizes[0], mean=1), eps),
            k_norm=RMSNorm.create(random(sizes[1], mean=1), eps),
            clip=0.9,
            scale=0.4,
            sinks=random(held.num_heads, mean=1),
            window=(None, 3)[n % 2],
        )
        routed = replace(router, bias=random(router.weight.shape[0]), normalise=False, scale=1.7)
        experts = replace(
            old.moe.experts,
            gate_up_bias=random(router.weight.shape[0], 2 * model.config.intermediate_size),
            down_bias=random(router.weight.shape[0], model.config.hidden_size),
            activation=Swiglu(alpha=1.7, limit=1.5, shift=1.0),
        )
        return replace(old, attention=attention, moe=replace(old.moe, router=routed, experts=experts), residual=0.6)

    config = replace(model.config, sliding_window=3, windowed=(False, True))
    return replace(model, config=config, layers=tuple(map(layer, range(2), model.layers)))


@pytest.mark.parametrize(("norm", "experts"), [("projection", 4), ("head", 12)])  # The router has two ways.
def test_what_families_add(tmp_path: Path, device: torch.device, norm: str, experts: int) -> None:
    loaded = load(tmp_path, device, FP32, FP32, num_local_experts=experts, num_experts_per_tok=3)
    model = enriched(loaded, norm, experts)
    assert fused(model).fused is not None
    steps = STEPS[:3]
    theirs = logits(plain(model), steps)
    assert error(logits(fused(model), steps), theirs) < 2e-5
    assert error(logits(seams(model), steps[:1]), theirs[:1]) < 2e-5


@pytest.mark.parametrize("what", ["layer norm", "jitter", "shared expert"])
def test_what_is_not_fused_is_composed_of_the_seams(tmp_path: Path, device: torch.device, what: str) -> None:
    loaded = load(tmp_path, device, FP32, FP32)
    first, second = loaded.layers
    moe, held, weight = second.moe, second.moe.experts, second.post_norm.weight
    assert moe.router is not None
    shared = SharedExpert(ExpertWeights(held.gate_up[:1], held.down[:1]), torch.ones_like(weight)[None])
    changed = {
        "layer norm": replace(second, post_norm=LayerNorm(weight, torch.ones_like(weight), 1e-5)),
        "jitter": replace(second, moe=replace(moe, router=replace(moe.router, jitter=0.1))),
        "shared expert": replace(second, moe=replace(moe, shared=shared)),
    }
    model = replace(loaded, layers=(first, changed[what]))
    assert fused(model).fused is None
    assert error(logits(seams(model), STEPS[:2]), logits(plain(model), STEPS[:2])) < 1e-5


def test_attention_and_the_head_in_few_bits(tmp_path: Path, device: torch.device) -> None:
    config = ModelConfig.from_pretrained(write_tiny_checkpoint(tmp_path, **SHAPE))
    precision = Precision(FP32, Int8RowMajor, Int8RowMajor)
    model = load_model(tmp_path, config, select_backend(config, device), precision)
    assert GpuDecoder.of(model.layers, config.rms_norm_eps, arch(model)) is not None
    assert not isinstance(model.head, Tensor)
    assert error(logits(fused(model), STEPS[:2]), logits(plain(model), STEPS[:2])) < 1e-5
    assert error(logits(seams(model), STEPS[:1]), logits(plain(model), STEPS[:1])) < 1e-5


def test_experts_whose_inputs_have_an_order(tmp_path: Path, device: torch.device) -> None:
    """Gives each expert's gate and up its own order, as act order does, and compares with the seam in plain torch."""
    torch.manual_seed(0)
    form = row_major_form(Kind(tuple(range(16)), 32, Scale.FLOAT16, Offset.ZERO))
    assert form is not None
    gate_up, down = (
        replace(form, ordered=ordered).stack(3, shape, zeros_on(device))
        for shape, ordered in (((48, 64), True), ((64, 24), False))
    )
    for weight in (*gate_up, *down):
        weight.put(random_held(Kind(tuple(range(16)), 32, Scale.FLOAT16, Offset.ZERO), *weight.shape)[0], 0)
        if weight.order is not None:
            weight.order.copy_(torch.randperm(64))
    held = ExpertWeights(gate_up, down)
    assert are_taken(held) and not are_taken(replace(held, down=gate_up))
    for count in (1, 5):
        x, ids = torch.randn(count, 64, device=device), ragged(count, 2, 3, device)
        partials = partial_outputs(x, ids, Stack.of(gate_up), Stack.of(down), "sm_90")
        ours = partials.sum(0).view(count, 2, 64).sum(1)
        theirs = experts(x, ids.long(), torch.ones(count, 2, device=device), held)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
