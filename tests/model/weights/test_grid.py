"""Tests that fit is exact if it can be, no worse than the grid between extremes, nearly as good as trying many."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from octavo.model.weights.grid import fit, rounded

LEVELS = 15


def squared_errors(groups: Tensor, scales: Tensor, mins: Tensor) -> Tensor:
    """Returns the squared error [n] of groups [n, 32]."""
    quants = rounded(groups, scales, mins, LEVELS)
    return (quants * scales[:, None] + mins[:, None] - groups).double().square().sum(-1)


@settings(derandomize=True, max_examples=50, deadline=None)
@given(seed=st.integers(0, 1000), power=st.integers(-10, 10), skew=st.integers(1, 4))
def test_never_worse_than_the_extremes(seed: int, power: int, skew: int) -> None:
    torch.manual_seed(seed)
    groups = (torch.randn(20, 32).abs() ** skew * torch.randn(20, 32).sign() + torch.randn(20, 1)) * 2.0**power
    low, high = groups.aminmax(dim=-1)
    scales, mins = fit(groups, LEVELS)
    assert torch.equal(scales, scales.half().float()) and torch.equal(mins, mins.half().float())
    extremes = squared_errors(groups, ((high - low) / LEVELS).half().float(), low.half().float())
    assert (squared_errors(groups, scales, mins) <= extremes * (1 + 1e-5)).all()


class Operations(TorchDispatchMode):
    """Counts the operations that are asked for."""

    count = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.count += 1
        return operation(*args, **(kwargs or {}))


def test_a_device_is_asked_for_few_operations() -> None:
    """Each operation is a launch, and a checkpoint in pieces of some million weights takes a thousand times as many."""
    with Operations() as operations:
        scales, mins = fit(torch.empty(5, 3, 128, device="meta"), LEVELS)
    assert scales.shape == mins.shape == (5, 3) and operations.count < 500


def test_what_lies_on_a_grid_is_kept() -> None:
    torch.manual_seed(0)
    quants = torch.randint(0, LEVELS + 1, (50, 32)).float()
    quants[:, 0], quants[:, 1] = 0, LEVELS
    scales, mins = (torch.rand(50) * 0.01).half().float(), (-0.07 * torch.rand(50)).half().float()
    groups = quants * scales[:, None] + mins[:, None]
    assert squared_errors(groups, *fit(groups, LEVELS)).max() < 1e-9
    constant = torch.full((1, 32), 0.3125)
    assert fit(constant, LEVELS) == (0, 0.3125)


def test_nearly_as_good_as_trying_many() -> None:
    torch.manual_seed(0)
    groups = torch.randn(200, 32)
    low, high = groups.aminmax(dim=-1)
    best = torch.full((200,), torch.inf).double()
    for below in torch.linspace(0, 0.25, 40):
        for above in torch.linspace(0, 0.25, 40):
            scales = (high - low) * (1 - below - above) / LEVELS
            best = torch.minimum(best, squared_errors(groups, scales, low + (high - low) * below))
    found = squared_errors(groups, *fit(groups, LEVELS)).sum()
    extremes = squared_errors(groups, (high - low) / LEVELS, low).sum()
    assert found < 1.05 * best.sum() < 0.9 * extremes
