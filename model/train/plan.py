"""Turns minutes into a number of steps, once, by trying steps out on the machine."""

import time
from collections.abc import Callable
from dataclasses import replace

import torch

from octavo.model.config import ModelConfig, ModelError
from octavo.model.train.adam import AdamState
from octavo.model.train.corpus import Batch
from octavo.model.train.deltas import dense, rounded, seeded, together
from octavo.model.train.evaluate import SCALES
from octavo.model.train.fit import Task, take_step
from octavo.model.train.settings import Settings
from octavo.model.train.tasks import Bench, Costs, expert_task, input_sizes, router_task

LEAST_STEPS = 10  # Fewer train nothing.
TRIED = 2  # steps that are timed, after one that is not


def measured(bench: Bench, clock: Callable[[], float] = time.perf_counter) -> Costs:
    """Times a few steps of each kind, whose results are thrown away."""
    device, settings = bench.model.device, bench.settings
    nothing = [rounded(seeded(bench.model.config, settings.rank, 0, expert.name)) for expert in bench.experts[1:]]
    experts = {name: tensor.to(device) for name, tensor in dense(together(nothing)).items()}
    expert = seconds_of(expert_task(bench, 1), device, clock)
    router = seconds_of(router_task(bench, experts, input_sizes(bench)), device, clock)
    return Costs(expert, router, _seconds_of_evaluation(bench, clock))


def seconds_of(task: Task, device: torch.device, clock: Callable[[], float] = time.perf_counter) -> float:
    """Times a few steps of a training from its start, and returns the seconds of one."""
    task = replace(task, steps=TRIED + 1)
    state = AdamState.start({name: each.to(device) for name, each in task.start().items()})
    state, _ = take_step(task, state)
    began = clock()
    for _ in range(TRIED):
        state, _ = take_step(task, state)
    return max(1e-6, (clock() - began) / TRIED)


def _seconds_of_evaluation(bench: Bench, clock: Callable[[], float]) -> float:
    """Returns the seconds that a token takes in a forward pass without gradients."""
    tokens = torch.zeros(bench.settings.rows, bench.settings.length, dtype=torch.int64, device=bench.model.device)
    batch = Batch(tokens, torch.ones_like(tokens, dtype=torch.bool), tokens[:, 0])
    began = clock()
    with torch.inference_mode():
        bench.model.losses(batch, bench.model.own).sum().item()
    return (clock() - began) / tokens.numel()


def seconds_of_a_step(bench: Bench, costs: Costs) -> float:
    """Returns what each step costs in all trainings together: of every expert, of the twin and of the routers."""
    experts = len(bench.experts) - 1
    return costs.expert * experts * (1 + bench.settings.baseline) + costs.router


def seconds_besides(bench: Bench, costs: Costs) -> float:
    """Returns what scales and the report cost, however many steps there are."""
    return costs.token * bench.settings.length * (documents_for_scales(bench) + documents_to_measure(bench))


def documents_for_scales(bench: Bench) -> int:
    """Counts the documents of all forward passes that choose scales."""
    each = [len(bench.domains[number].validation) for expert in bench.experts for number in expert.domains]
    return len(SCALES) * sum(each)


def documents_to_measure(bench: Bench) -> int:
    """Counts the documents of all forward passes for the report: to find the best single expert, and to compare."""
    validation = sum(len(domain.validation) for domain in bench.domains)
    test = sum(len(domain.test) for domain in bench.domains)
    return len(bench.experts) * validation + (4 + bench.settings.baseline) * test


def steps_for(bench: Bench, costs: Costs, seconds: float) -> int:
    """Returns how many steps fit into the seconds that are left. Raises ModelError where these are too few."""
    each, besides = seconds_of_a_step(bench, costs), seconds_besides(bench, costs)
    steps = int((seconds - besides) / each)
    if steps < LEAST_STEPS:
        missing = (LEAST_STEPS * each + besides - seconds) / 60
        raise ModelError(
            f"The time is too short: {LEAST_STEPS} steps of each training and the report take {missing:.1f} minutes "
            "more here. Raise --minutes, or train less at once: --no-baseline, fewer domains, a shorter --length."
        )
    return steps


def memory_bytes(config: ModelConfig, settings: Settings, domains: int) -> int:
    """Estimates what a training takes: the dense weights in float32, and what a step keeps for its gradients."""
    rows = max(settings.rows, domains)
    inner = config.num_hidden_layers * (12 * config.hidden_size + 8 * config.intermediate_size)
    activations = rows * settings.length * (3 * config.vocab_size + inner)
    return 4 * (config.num_parameters() + activations)
