"""Minimises a loss by AdamW (https://arxiv.org/abs/1711.05101), with all of its state in plain tensors."""

from dataclasses import dataclass

import torch
from torch import Tensor

BETA1, BETA2, EPSILON = 0.9, 0.95, 1e-8  # The betas are those of Llama 2 (https://arxiv.org/abs/2307.09288).
MOST_NORM = 1.0  # of all gradients together
WARM_UP = 0.1  # of the steps


@dataclass(frozen=True, slots=True, eq=False)
class AdamState:
    """An AdamState is all that the next step depends on, besides its data."""

    step: int  # steps that are done
    parameters: dict[str, Tensor]
    mean: dict[str, Tensor]  # of the gradients
    square: dict[str, Tensor]  # mean of their squares

    @classmethod
    def start(cls, parameters: dict[str, Tensor]) -> "AdamState":
        """Begins with these values; they are copied, since steps change them in place."""
        zeros = {name: torch.zeros_like(value) for name, value in parameters.items()}
        others = {name: torch.zeros_like(value) for name, value in parameters.items()}
        return cls(0, {name: value.detach().clone() for name, value in parameters.items()}, zeros, others)


def rate_at(step: int, steps: int, highest: float) -> float:
    """Returns the learning rate of a step, counted from 0: it rises over a tenth of all steps, then falls to zero."""
    warm = max(1, round(WARM_UP * steps))
    if step < warm:
        return highest * (step + 1) / warm
    return highest * (steps - step) / max(1, steps - warm + 1)


def advance(state: AdamState, gradients: dict[str, Tensor], rate: float, decay: float = 0.0) -> AdamState:
    """Takes one step, in place, and returns the state behind it. Gradients are cut to a norm of MOST_NORM."""
    # A sum depends on its order, and a state that was read from a file has its tensors in another one.
    norm = torch.stack([gradients[name].norm() for name in sorted(gradients)]).norm()
    cut = (MOST_NORM / norm.clamp(min=1e-12)).clamp(max=1.0)
    step = state.step + 1
    for name, value in state.parameters.items():
        gradient = gradients[name] * cut
        mean, square = state.mean[name], state.square[name]
        mean.lerp_(gradient, 1 - BETA1)
        square.mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
        size = (square / (1 - BETA2**step)).sqrt_().add_(EPSILON)
        value.mul_(1 - rate * decay).sub_(rate * (mean / (1 - BETA1**step)) / size)
    return AdamState(step, state.parameters, state.mean, state.square)
