"""Runs one training from its first step to its last, or from where an earlier run has left it."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.model.config import ModelError
from octavo.model.train.adam import AdamState, advance, rate_at
from octavo.model.train.keeper import Keeper
from octavo.model.train.progress import Meter

Parameters = dict[str, Tensor]
Loss = Callable[[Parameters, int], tuple[Tensor, float]]  # what is minimised in a step, and what is told of it


@dataclass(frozen=True, slots=True)
class Task:
    """A Task is one training."""

    name: str  # also that of its files
    title: str
    steps: int
    rate: float  # the highest
    start: Callable[[], Parameters]
    loss: Loss
    tokens: int  # of a step
    seconds: float  # that a step was measured to take


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """Fitted is the result of a task."""

    parameters: Parameters
    curve: tuple[float, ...]  # the loss of each step


CURVE = "curve"  # the name of the losses among the tensors that are kept


def fit(task: Task, keeper: Keeper, meter: Meter, device: torch.device) -> Fitted:
    """Trains unless that is done. Raises ModelError where the loss is no number any more, or the disk is full."""
    meter.begin()
    if (found := keeper.finished(task.name, device)) is not None:
        meter.skip(task.steps * task.seconds)
        return _fitted(found)
    state, curve = AdamState.start({name: each.to(device) for name, each in task.start().items()}), list[float]()
    if (begun := keeper.started(task.name, device)) is not None:
        state, curve = begun[0], begun[1].tolist()
        meter.skip(state.step * task.seconds)
    while state.step < task.steps:
        state, told = take_step(task, state)
        curve.append(told)
        meter.step(task.title, (state.step, task.steps), told, (task.tokens, task.seconds))
        keeper.keep(task.name, state, curve)
    result = state.parameters | {CURVE: torch.tensor(curve, dtype=torch.float64)}
    keeper.finish(task.name, result)
    return _fitted(result)


def take_step(task: Task, state: AdamState) -> tuple[AdamState, float]:
    """Returns the state behind the next step, and the loss that was told. Raises ModelError if it is no number."""
    leaves = {name: value.detach().requires_grad_() for name, value in state.parameters.items()}
    objective, told = task.loss(leaves, state.step)
    if not math.isfinite(told):
        raise ModelError(
            f"The loss of {task.title} is {told} at step {state.step + 1}: lower --learning-rate or "
            "--router-learning-rate, remove the unfinished directory and begin anew."
        )
    gradients = torch.autograd.grad(objective, list(leaves.values()))
    with torch.no_grad():
        rate = rate_at(state.step, task.steps, task.rate)
        return advance(state, dict(zip(leaves, gradients, strict=True)), rate), told


def _fitted(tensors: Parameters) -> Fitted:
    curve = tuple(tensors[CURVE].tolist())
    return Fitted({name: each for name, each in tensors.items() if name != CURVE}, curve)
