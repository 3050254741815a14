"""Tests what a model is said to choose from, and that experts count as identical only if all their bytes are."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from octavo.engine.api import ExpertShape
from octavo.engine.startup.experts import are_identical, expert_shape
from octavo.model.weights.forms import ExpertWeights, Weight
from octavo.model.weights.fp16 import Fp16Weight
from octavo.model.weights.kinds import INT4, INT8
from octavo.model.weights.row_major import Fp8RowMajor, Int8RowMajor
from octavo.model.weights.tiles import TiledWeight
from tests.model.checkpoints import Tensors, change, load
from tests.model.marks import needs_fbgemm
from tests.tiny import write_tiny_checkpoint

OUT, INPUTS = 96, 64
FORMS = {
    "plain": lambda dense: dense,
    "bfloat16": lambda dense: dense.bfloat16(),
    "int8 tiles": lambda dense: TiledWeight.pack(INT8, dense),
    "int4 tiles": lambda dense: TiledWeight.pack(INT4, dense),
    "int8 rows": Int8RowMajor.pack,
    "fp8 rows": Fp8RowMajor.pack,
    "float16": Fp16Weight.pack,
}
EACH_FORM = pytest.mark.parametrize(
    "form", [pytest.param(name, marks=needs_fbgemm if name == "float16" else ()) for name in FORMS]
)


def matrix(seed: int) -> Tensor:
    return torch.randn(OUT, INPUTS, generator=torch.Generator().manual_seed(seed))


def experts(form: str, gate_up: list[Tensor], down: list[Tensor]) -> ExpertWeights:
    sides: list[tuple[Weight, ...]] = [tuple(map(FORMS[form], side)) for side in (gate_up, down)]
    return ExpertWeights(*sides)


@EACH_FORM
def test_copies_are_identical(form: str) -> None:
    assert are_identical(experts(form, [matrix(0)] * 3, [matrix(1)] * 3))


@EACH_FORM
@pytest.mark.parametrize("place", [(0, 0), (OUT - 1, INPUTS - 1)], ids=["first", "last"])
@pytest.mark.parametrize("side", ["gate_up", "down"])
def test_a_single_number_makes_a_difference(form: str, place: tuple[int, int], side: str) -> None:
    sides = {"gate_up": [matrix(0)] * 3, "down": [matrix(1)] * 3}
    other = sides[side][0].clone()
    other[place] += 2.0
    sides[side] = [*sides[side][:2], other]
    assert not are_identical(experts(form, **sides))


@pytest.mark.parametrize("bias", ["gate_up_bias", "down_bias"])
def test_a_bias_makes_a_difference_too(bias: str) -> None:
    copies, same = experts("plain", [matrix(0)] * 3, [matrix(1)] * 3), torch.ones(3, OUT)
    assert are_identical(replace(copies, **{bias: same}))
    different = same.clone()
    different[2, -1] = 2
    assert not are_identical(replace(copies, **{bias: different}))


def test_an_order_of_the_inputs_makes_a_difference() -> None:
    plain = TiledWeight.pack(INT8, matrix(0))
    order = torch.arange(INPUTS).int()
    ordered = [replace(plain, order=each) for each in (order, order.clone(), order.flip(0))]
    down = (plain,) * 2
    assert are_identical(ExpertWeights((ordered[0], ordered[1]), down))
    assert not are_identical(ExpertWeights((ordered[0], ordered[2]), down))
    assert not are_identical(ExpertWeights((ordered[0], plain), down))


def test_numbers_that_are_none_are_compared_as_bytes() -> None:
    odd = matrix(0)
    odd[3, 3] = torch.nan
    assert are_identical(experts("plain", [odd, odd.clone()], [matrix(1)] * 2))


def copies_of_the_first(tensors: Tensors, layers: tuple[int, ...]) -> None:
    for name in tensors:
        prefix, expert, rest = name.partition(".experts.")
        if expert and int(prefix.split(".")[2]) in layers:
            tensors[name] = tensors[f"{prefix}.experts.0.{rest.split('.', 1)[1]}"].clone()


@pytest.mark.parametrize(("layers", "identical"), [((), False), ((0,), False), ((1,), False), ((0, 1), True)])
def test_the_shape_of_a_sparse_model(tmp_path: Path, layers: tuple[int, ...], identical: bool) -> None:
    directory = write_tiny_checkpoint(tmp_path)
    change(directory, lambda tensors: copies_of_the_first(tensors, layers))
    assert expert_shape(load(directory)) == ExpertShape((0, 1), 4, 2, identical)


def test_a_dense_model_has_no_shape(tmp_path: Path) -> None:
    assert expert_shape(load(write_tiny_checkpoint(tmp_path, model_type="mistral"))) is None


def test_layers_without_a_router_are_left_out(tmp_path: Path) -> None:
    model = load(write_tiny_checkpoint(tmp_path, num_hidden_layers=3))
    shape = expert_shape(replace(model, config=replace(model.config, dense_layers=(1,))))
    assert shape is not None and shape.layers == (0, 2)
