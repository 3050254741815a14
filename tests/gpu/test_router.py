"""Compares the router with its reference: the same experts, in the same order, with the same shares."""

from dataclasses import replace

import pytest
import torch

from octavo.model.kernels.gpu.norm import Delta
from octavo.model.kernels.gpu.router import Routed, route, route_reference
from octavo.model.moe import Router

EPS = 1e-5
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
QUOTIENT = 2.0**-22  # div.full.f32 is right within two places
each_dtype = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)


def random_rows(
    tokens: int, hidden: int, num_experts: int, dtype: torch.dtype, device: torch.device
) -> list[torch.Tensor]:
    """Returns x, delta, norm weight and gate."""
    torch.manual_seed(tokens + hidden)
    x, delta = torch.randn(2, tokens, hidden) * 3
    norm_weight, gate = 1 + 0.1 * torch.randn(hidden), torch.randn(num_experts, hidden) / hidden**0.5
    return [tensor.to(device, dtype) for tensor in (x, delta, norm_weight, gate)]


def assert_close(actual: Routed, expected: Routed, dtype: torch.dtype) -> None:
    torch.testing.assert_close(actual.x, expected.x, rtol=0, atol=0)
    torch.testing.assert_close(actual.normed, expected.normed, rtol=TOLERANCE[dtype], atol=1e-5)
    torch.testing.assert_close(actual.weights, expected.weights, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(actual.ids, expected.ids, rtol=0, atol=0)


@each_dtype
@pytest.mark.parametrize(
    ("num_experts", "top_k"), [(1, 1), (2, 2), (8, 1), (8, 2), (9, 2), (16, 2), (32, 4), (60, 4), (64, 8), (128, 8)]
)
@pytest.mark.parametrize("hidden", [64, 300, 520])
def test_against_the_reference(
    device: torch.device, dtype: torch.dtype, num_experts: int, top_k: int, hidden: int
) -> None:
    """Some splits of 300 and of 520 inputs have none, and a tile is not full."""
    x, delta, norm_weight, gate = random_rows(7, hidden, num_experts, dtype, device)
    router = Router(gate, top_k)
    actual = route(x, Delta(delta), norm_weight, EPS, router)
    # From the same rounded rows: a last bit of one of them may decide between two experts.
    expected = route_reference(x, Delta(delta), norm_weight, EPS, router)
    assert_close(actual, expected, dtype)


@pytest.mark.parametrize("num_experts", [4, 8, 9, 128])
@pytest.mark.parametrize("normalise", [True, False])
def test_addends_of_each_row(device: torch.device, num_experts: int, normalise: bool) -> None:
    """Each row leaves out other experts; the last has as many left as it chooses."""
    x, rows, norm_weight, gate = random_rows(21, 300, num_experts, torch.float32, device)
    router = Router(gate, 3, torch.randn(num_experts, device=device), normalise)
    addend = torch.randn(21, num_experts, device=device)
    addend[torch.arange(21), torch.arange(21) % num_experts] = -torch.inf
    addend[-1, : num_experts - 3] = -torch.inf
    addend[-1, num_experts - 3 :] = 0
    actual, expected = (each(x, Delta(rows), norm_weight, EPS, router, addend) for each in (route, route_reference))
    assert_close(actual, expected, torch.float32)
    assert sorted(actual.ids[-1].tolist()) == list(range(num_experts - 3, num_experts))


@pytest.mark.parametrize("num_experts", [3, 8, 9, 128])
@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_biases_scales_and_shares_of_all(device: torch.device, num_experts: int, normalise: bool, scale: float) -> None:
    """Biases of this size choose other experts than the gate alone would."""
    x, rows, norm_weight, gate = random_rows(21, 300, num_experts, torch.float32, device)
    bias = torch.randn(num_experts, device=device)
    router = Router(gate, 3, bias, normalise, scale)
    delta = Delta(rows, torch.randn(300, device=device), 0.5)
    actual, expected = (each(x, delta, norm_weight, EPS, router) for each in (route, route_reference))
    torch.testing.assert_close(actual.x, expected.x)
    assert_close(replace(actual, x=expected.x), expected, torch.float32)
    if num_experts > 3:
        assert not route(x, delta, norm_weight, EPS, replace(router, bias=None)).ids.equal(actual.ids)
    sums = actual.weights.sum(-1)
    assert (sums < scale).all() if num_experts > 3 and not normalise else sums.allclose(torch.tensor(scale))


def test_without_a_delta_the_stream_stays_where_it_is(device: torch.device) -> None:
    x, _, norm_weight, gate = random_rows(3, 64, 8, torch.float32, device)
    before, router = x.clone(), Router(gate, 2)
    actual = route(x, None, norm_weight, EPS, router)
    assert actual.x is x
    assert_close(actual, route_reference(before, None, norm_weight, EPS, router), torch.float32)


@pytest.mark.parametrize("num_experts", [8, 90])
def test_of_equal_logits_the_lowest_expert_comes_first(device: torch.device, num_experts: int) -> None:
    x = torch.ones(3, 32, device=device)
    gate = torch.zeros(num_experts, 32, device=device)
    gate[[2, 5, num_experts - 1]] = 0.5
    routed = route(x, None, torch.ones(32, device=device), EPS, Router(gate, 4))
    assert routed.ids.tolist() == [[2, 5, num_experts - 1, 0]] * 3
    shares = routed.weights[0].tolist()
    assert shares[0] == shares[1] == shares[2] > shares[3]


def test_all_experts_equal(device: torch.device) -> None:
    """Routes rows in which all experts are equal, like those of empty or padding rows."""
    x = torch.zeros(2, 32, device=device)
    routed = route(x, None, torch.ones(32, device=device), EPS, Router(torch.randn(8, 32, device=device), 2))
    assert routed.ids.tolist() == [[0, 1]] * 2
    assert routed.weights.flatten().tolist() == pytest.approx([0.5] * 4, abs=QUOTIENT)


def test_one_choice_has_all_the_weight(device: torch.device) -> None:
    x, delta, norm_weight, gate = random_rows(5, 64, 8, torch.float16, device)
    routed = route(x, Delta(delta), norm_weight, EPS, Router(gate, 1))
    assert routed.weights.flatten().tolist() == pytest.approx([1] * 5, abs=QUOTIENT)


@pytest.mark.parametrize("num_experts", [3, 8, 9, 128])
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # the interpreter is numpy
def test_a_row_that_is_no_number_chooses_experts_that_exist(device: torch.device, num_experts: int) -> None:
    """Else the kernels behind would read outside of the weights; that nothing comes of it shows in its weights."""
    x, _, norm_weight, gate = random_rows(3, 64, num_experts, torch.float32, device)
    whole = route(x, None, norm_weight, EPS, Router(gate, 2))
    x[1, 5] = float("nan")
    routed = route(x, None, norm_weight, EPS, Router(gate, 2))
    assert ((routed.ids >= 0) & (routed.ids < num_experts)).all()
    assert routed.weights[1].isnan().all()
    for row in (0, 2):
        assert routed.ids[row].equal(whole.ids[row])
        assert routed.weights[row].equal(whole.weights[row])


@pytest.mark.parametrize("num_experts", [8, 64])
def test_a_row_is_the_same_in_any_company(device: torch.device, num_experts: int) -> None:
    """Puts each row behind other rows. It keeps its place, since numpy's products differ from place to place."""
    x, delta, norm_weight, gate = random_rows(19, 300, num_experts, torch.bfloat16, device)
    router = Router(gate, 2)
    together = route(x, Delta(delta), norm_weight, EPS, router)
    for row in range(0, 19, 3):
        others, own = torch.randn(row, 300, device=device).bfloat16(), slice(row, row + 1)
        behind = route(torch.cat((others, x[own])), Delta(torch.cat((others, delta[own]))), norm_weight, EPS, router)
        for name in ("x", "normed", "weights", "ids"):
            assert getattr(behind, name)[row].equal(getattr(together, name)[row]), name


def test_a_row_of_few_experts_is_the_same_alone(device: torch.device) -> None:
    x, delta, norm_weight, gate = random_rows(6, 300, 8, torch.bfloat16, device)
    together = route(x, Delta(delta), norm_weight, EPS, Router(gate, 2))
    for row in range(6):
        # Copies begin where every tensor does: a kernel for other addresses may add up in another order.
        own = Delta(delta[row : row + 1].clone())
        alone = route(x[row : row + 1].clone(), own, norm_weight, EPS, Router(gate, 2))
        for name in ("x", "normed", "weights", "ids"):
            assert getattr(alone, name)[0].equal(getattr(together, name)[row]), name
