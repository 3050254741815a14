"""Trains a small sparse decoder and its dense twin from nothing, on equal tokens, and compares them."""

import json
import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from octavo.model.config import ModelError
from octavo.model.prepared.source import SINGLE
from octavo.model.train.corpus import Domain, DomainRows, batch_of, digest_of, padded
from octavo.model.train.dense import DenseModel
from octavo.model.train.files import write_whole
from octavo.model.train.fit import Fitted, Loss, Parameters, Task, fit
from octavo.model.train.keeper import Keeper, unwritten
from octavo.model.train.plan import LEAST_STEPS, seconds_of
from octavo.model.train.pretrain_report import Trained, compared, page
from octavo.model.train.progress import Meter, Tell
from octavo.model.train.scratch import Sizes, checkpoint_tensors, config_json, decoder_of, feed_forward, first_weights
from octavo.model.train.sparse import Routed, balance_loss, z_loss
from octavo.model.train.work import alone, check_absent, own

SAVED_EVERY = 60.0  # seconds of a training
AT_ONCE = 8  # documents
TITLES = {"dense": "the dense twin", "sparse": "the sparse model"}


@dataclass(frozen=True, slots=True)
class Recipe:
    """A Recipe is what a result depends on, besides the text and the number of steps."""

    sizes: Sizes
    length: int = 256  # tokens of a row
    rows: int = 8  # of a step
    seed: int = 0
    learning_rate: float = 2e-3
    balance: float = 0.01  # OLMoE (https://arxiv.org/abs/2409.02060, section 4.1.6), as in Switch Transformers
    z: float = 0.001  # OLMoE (section 4.1.7), as in ST-MoE


@dataclass(frozen=True, slots=True)
class PretrainOrder:
    """A PretrainOrder is what somebody asks for."""

    out: Path
    recipe: Recipe
    tokenizer: dict[str, str]  # the files of the tokenizer, and their texts
    steps: int | None
    minutes: float  # counts where there are no steps

    @property
    def work(self) -> Path:
        return self.out.with_name(f".{self.out.name}.training")


def pretrain(order: PretrainOrder, text: Domain, tell: Tell) -> dict[str, Any]:
    """Does all of it, and returns the report. Raises ModelError."""
    check_absent(order.out)
    began = time.monotonic()
    keeper = Keeper(order.work, SAVED_EVERY)
    with alone(order.work, order.out):
        own(keeper, {"settings": asdict(order.recipe), "text": digest_of([text])})
        tasks = _planned(order, text, keeper, began)
        meter = Meter(tell, sum(task.steps * task.seconds for task in tasks.values()))
        device = torch.device("cpu")
        fitted = {name: fit(task, keeper, meter, device) for name, task in tasks.items()}
        trained = {name: _trained(order.recipe, name, each, text) for name, each in fitted.items()}
        found = compared(order.recipe.sizes, tasks["sparse"].steps, trained, order.recipe.seed)
        _written(order, fitted["sparse"], found)
    shutil.rmtree(order.work, ignore_errors=True)
    return found


def task_for(recipe: Recipe, name: str, text: Domain, steps: int, seconds: float) -> Task:
    """Returns the training of the sparse decoder or of its twin; both see the same rows."""
    config = recipe.sizes.config(sparse=name == "sparse")
    return Task(
        name=name,
        title=TITLES[name],
        steps=steps,
        rate=recipe.learning_rate,
        start=lambda: first_weights(config, recipe.seed),
        loss=_loss(recipe, name, text),
        tokens=recipe.rows * recipe.length,
        seconds=seconds,
    )


def _loss(recipe: Recipe, name: str, text: Domain) -> Loss:
    config = recipe.sizes.config(sparse=name == "sparse")
    rows = DomainRows(text, 0, recipe.length, recipe.seed)

    def loss(weights: Parameters, step: int) -> tuple[Tensor, float]:
        model, seen = DenseModel(decoder_of(config, weights)), list[Routed]()
        own_loss = model.losses(batch_of(rows, step, recipe.rows), feed_forward(model, seen)).mean()
        others = [recipe.balance * balance_loss(each) + recipe.z * z_loss(each) for each in seen]
        return own_loss + (torch.stack(others).sum() if others else 0.0), own_loss.item()

    return loss


def _planned(order: PretrainOrder, text: Domain, keeper: Keeper, began: float) -> dict[str, Task]:
    """Returns both trainings with the number of steps, which an earlier run may have found. Raises ModelError."""
    plan = keeper.read("plan")
    if plan is not None and order.steps not in (None, plan["steps"]):
        raise ModelError(
            f"{order.work} holds an unfinished training of {plan['steps']} steps: give --steps {plan['steps']}, or "
            "remove the directory to begin anew."
        )
    tasks = {name: task_for(order.recipe, name, text, 1, 1.0) for name in TITLES}
    if plan is None:
        seconds = {name: seconds_of(task, torch.device("cpu")) for name, task in tasks.items()}
        left = 60 * order.minutes - (time.monotonic() - began)
        steps = order.steps or int(left / sum(seconds.values()))
        if steps < LEAST_STEPS and order.steps is None:
            raise ModelError(f"In {order.minutes:g} minutes there is no time for {LEAST_STEPS} steps: raise --minutes.")
        plan = {"steps": steps, "seconds": seconds}
        keeper.write("plan", plan)
    return {name: replace(task, steps=plan["steps"], seconds=plan["seconds"][name]) for name, task in tasks.items()}


def _trained(recipe: Recipe, name: str, fitted: Fitted, text: Domain) -> Trained:
    """Measures a model on the test documents."""
    config = recipe.sizes.config(sparse=name == "sparse")
    model = DenseModel(decoder_of(config, fitted.parameters))
    sums, counts, use = [], [], torch.zeros(config.num_hidden_layers, config.num_experts, dtype=torch.float64)
    for first in range(0, len(text.test), AT_ONCE):
        batch, seen = padded(text.test[first : first + AT_ONCE], 0, recipe.length), list[Routed]()
        with torch.inference_mode():
            losses = model.losses(batch, feed_forward(model, seen)).double()
        counts.append(batch.counted.sum(dim=1))
        sums.append(torch.stack([part.sum() for part in losses.split(counts[-1].tolist())]))
        for layer, routed in enumerate(seen):
            chosen = routed.ids[batch.counted.flatten()].flatten()
            use[layer] += torch.bincount(chosen, minlength=config.num_experts)
    return Trained(
        torch.cat(sums).numpy(), torch.cat(counts).double().numpy(), use.numpy(), fitted.curve, config.num_parameters()
    )


def _written(order: PretrainOrder, sparse: Fitted, found: dict[str, Any]) -> None:
    """Writes the checkpoint and the report; the directory appears when it is whole. Raises ModelError."""
    directory = order.work / "model"
    config = order.recipe.sizes.config(sparse=True)
    tensors = {
        name: each.contiguous().clone()
        for name, each in checkpoint_tensors(decoder_of(config, sparse.parameters)).items()
    }
    texts = order.tokenizer | {
        "config.json": json.dumps(config_json(order.recipe.sizes), indent=2) + "\n",
        "report.json": json.dumps(found, indent=2) + "\n",
        "report.html": page(found),
    }
    try:
        directory.mkdir(exist_ok=True)
        write_whole(directory / SINGLE, save(tensors, metadata={"format": "pt"}))
        for name, contents in texts.items():
            write_whole(directory / name, contents.encode())
        directory.rename(order.out)
    except OSError as error:
        raise unwritten(order.work, error) from None
