"""The optimiser is torch's AdamW, with its state in the open, a bound on gradients and a rate that falls to zero."""

import pytest
import torch

from octavo.model.train.adam import BETA1, BETA2, EPSILON, AdamState, advance, rate_at
from octavo.model.train.corpus import generator


@pytest.mark.parametrize("size", [0.01, 30.0])  # of gradients, below and above the bound
def test_steps_are_those_of_torch(size: float) -> None:
    random = generator(0)
    start = {"a": torch.randn(3, 4, generator=random), "b": torch.randn(5, generator=random)}
    theirs = {name: value.clone().requires_grad_() for name, value in start.items()}
    optimiser = torch.optim.AdamW(theirs.values(), lr=1.0, betas=(BETA1, BETA2), eps=EPSILON, weight_decay=0.1)
    state = AdamState.start(start)
    for step in range(6):
        gradients = {name: torch.randn(value.shape, generator=random) * size for name, value in start.items()}
        for name, value in theirs.items():
            value.grad = gradients[name].clone()
        torch.nn.utils.clip_grad_norm_(theirs.values(), 1.0)
        optimiser.param_groups[0]["lr"] = rate_at(step, 6, 0.1)
        optimiser.step()
        state = advance(state, gradients, rate_at(step, 6, 0.1), decay=0.1)
    assert state.step == 6
    for name, value in theirs.items():
        torch.testing.assert_close(state.parameters[name], value.detach(), rtol=1e-4, atol=1e-5)
        assert not torch.equal(start[name], state.parameters[name]), "the start stays as it was"


def test_the_rate_rises_then_falls() -> None:
    rates = [rate_at(step, 100, 2.0) for step in range(100)]
    assert rates[9] == 2.0 and rates[0] == pytest.approx(0.2)
    assert rates[:10] == sorted(rates[:10]) and rates[9:] == sorted(rates[9:], reverse=True)
    assert 0 < rates[-1] < 0.05
    assert 0 < rate_at(0, 1, 2.0) <= 2.0
