"""A weight that was written down is read again as it was, with the order of its inputs."""

import json
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from octavo.model.loading.forms import contents_of, form_of, weight_from
from octavo.model.weights.forms import Weight
from octavo.model.weights.kinds import Kind
from octavo.model.weights.tiles import TiledWeight
from tests.model.weights.any_kind import KINDS, NAMED, NAMES, random_weight


def read_again(weight: Weight, contents: Tensor | None = None) -> TiledWeight:
    held = torch.frombuffer(bytearray(contents_of(weight)), dtype=torch.uint8) if contents is None else contents
    again = weight_from(json.loads(json.dumps(form_of(weight))), held)
    assert isinstance(again, TiledWeight)
    return again


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_a_weight_of_any_kind(kind: Kind, ordered: bool) -> None:
    torch.manual_seed(0)
    weight = random_weight(kind, (30, 70), interleaved=True, terms=2, ordered=ordered)
    again = read_again(weight)
    assert (again.layout, again.terms) == (weight.layout, weight.terms)
    assert torch.equal(again.memory, weight.memory) and torch.equal(again.dense(), weight.dense())
    assert (again.order is None) == (not ordered)


def test_an_order_is_believed_only_if_it_is_a_permutation() -> None:
    """The kernels read the activations where it says."""
    weight = random_weight(NAMED["int8"], (16, 64), ordered=True)
    assert weight.order is not None
    for entry in (-1, 64, int(weight.order[1])):
        order = weight.order.clone()
        order[0] = entry
        with pytest.raises(ValueError, match="no permutation"):
            read_again(replace(weight, order=order))


@pytest.mark.parametrize("size", [-4, -1, 1, 4])
def test_an_order_has_an_entry_for_each_input(size: int) -> None:
    weight = random_weight(NAMED["int8"], (16, 64), ordered=True)
    whole = torch.frombuffer(bytearray(contents_of(weight)), dtype=torch.uint8)
    changed = whole[:size] if size < 0 else torch.cat((whole, torch.zeros(size, dtype=torch.uint8)))
    with pytest.raises(RuntimeError):
        read_again(weight, changed)
