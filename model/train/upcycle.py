"""Makes a sparse model from a dense one: trains, measures and writes, in stages that survive any end of the process."""

import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from octavo.model.config import ModelConfig, ModelError
from octavo.model.prepared.source import Source
from octavo.model.train.compare import Outcome
from octavo.model.train.corpus import Domain, digest_of
from octavo.model.train.deltas import Deltas, Rounded, dense, packed, rounded, scaled, together, unpacked
from octavo.model.train.dense import DenseModel, check_files, load_dense
from octavo.model.train.evaluate import best_scale
from octavo.model.train.family import SparseFamily, family_for
from octavo.model.train.fit import Fitted, fit
from octavo.model.train.keeper import Keeper, unwritten
from octavo.model.train.plan import measured, seconds_besides, seconds_of_a_step, steps_for
from octavo.model.train.progress import Meter, Tell
from octavo.model.train.report import write_report
from octavo.model.train.settings import Settings, experts_for
from octavo.model.train.tasks import ROUTERS, Bench, Costs, expert_task, input_sizes, router_task, twin_task, unscaled
from octavo.model.train.work import alone, check_absent, own
from octavo.model.train.writer import SparseCheckpoint, write_checkpoint

NO_COSTS = Costs(1.0, 1.0, 0.0)
SPARE = 1.05  # of the disk, for file systems' own use
SAVED_EVERY = 30.0  # seconds of a training


@dataclass(frozen=True, slots=True)
class Order:
    """An Order is what somebody asks for."""

    source: Path  # the dense checkpoint's directory
    name: str  # what the report calls it
    out: Path | None  # the directory to write; None: only the deltas are wanted
    deltas: Path | None  # the file for what was trained; None: it is not wanted by itself
    settings: Settings
    steps: int | None
    minutes: float  # counts where there are no steps
    device: torch.device

    @property
    def target(self) -> Path:
        """Returns the path beside which the work is done."""
        target = self.out or self.deltas
        assert target is not None
        return target

    @property
    def work(self) -> Path:
        return self.target.with_name(f".{self.target.name}.training")


def device_for(name: str) -> torch.device:
    """Returns the device of a name; auto is a GPU if there is one."""
    cuda = torch.cuda.is_available() if name == "auto" else name == "cuda"
    return torch.device("cuda" if cuda else "cpu")


def use_threads(count: int) -> None:
    """Lets torch compute on so many threads. Another number rounds sums in another way."""
    torch.set_num_threads(count)


@dataclass(frozen=True, slots=True)
class Checked:
    """Checked is what is known of an order before any text is read."""

    config: ModelConfig
    family: SparseFamily
    dtype: torch.dtype  # of the weights that are written


def check(order: Order, names: tuple[str, ...]) -> Checked:
    """Refuses what can be refused at once, for domains of these names. Raises ModelError."""
    config = ModelConfig.from_pretrained(order.source)
    family = family_for(order.source, config)
    experts = experts_for(order.settings, names)
    check_files(order.source)
    if order.settings.length > config.max_position_embeddings:
        raise ModelError(
            f"--length {order.settings.length} is longer than the {config.max_position_embeddings} positions of "
            f"{order.name}: lower it."
        )
    if order.out is not None:
        check_absent(order.out)
    if order.deltas is not None and order.deltas.exists() and not order.work.exists():
        raise ModelError(f"{order.deltas} is there already: give --deltas a new file, or move the old one away.")
    dtype: torch.dtype = {None: torch.bfloat16, "float16": torch.float16, "float32": torch.float32}.get(
        config.dtype, torch.bfloat16
    )
    checked = Checked(config, family, dtype)
    _check_disk(order, checked, len(experts))
    return checked


def _check_disk(order: Order, checked: Checked, experts: int) -> None:
    config, rank = checked.config, order.settings.rank
    sparse = replace(config, dense=False, num_experts=experts, num_experts_per_tok=1).num_parameters()
    trained = 3 * config.num_hidden_layers * (config.hidden_size + config.intermediate_size) * rank * experts
    needed = int(SPARE * (sparse * checked.dtype.itemsize * (order.out is not None) + 8 * trained * 4))
    place = next(each for each in order.work.absolute().parents if each.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise ModelError(
            f"The training needs {needed / 1e9:.1f} GB in {place}, where {free / 1e9:.1f} GB are free: make room, or "
            "give --out a place on a larger disk."
        )


def upcycle(order: Order, checked: Checked, domains: tuple[Domain, ...], tell: Tell) -> dict[str, Any]:
    """Does all of it, and returns the report. Raises ModelError."""
    began = time.monotonic()
    keeper = Keeper(order.work, SAVED_EVERY)
    with alone(order.work, order.target):
        own(keeper, _identity(order, domains))
        bench = _planned(_bench(order, checked, domains, tell), keeper, order, began)
        meter = Meter(tell, seconds_of_a_step(bench, bench.costs) * bench.steps + seconds_besides(bench, bench.costs))
        outcome = _trained(bench, keeper, meter, checked.dtype)
        found = _written(order, checked, outcome, meter)
    shutil.rmtree(order.work, ignore_errors=True)
    return found


def _bench(order: Order, checked: Checked, domains: tuple[Domain, ...], tell: Tell) -> Bench:
    """Loads the dense model. Steps and costs are not known yet."""

    def report(done: int, total: int) -> None:
        tell("loading the dense model", done, total, "")

    decoder = load_dense(order.source, checked.config, order.device, report)
    experts = experts_for(order.settings, [domain.name for domain in domains])
    return Bench(DenseModel(decoder), domains, experts, order.settings, 0, NO_COSTS)


def _identity(order: Order, domains: tuple[Domain, ...]) -> dict[str, Any]:
    """Returns what makes two trainings the same."""
    source = Source.of(order.source)
    files = [] if source is None else [[each.name, each.size, each.header] for each in source.files]
    return {"settings": asdict(order.settings), "dense model": files, "text": digest_of(domains)}


def _planned(bench: Bench, keeper: Keeper, order: Order, began: float) -> Bench:
    """Decides on the number of steps, unless an earlier run has. Raises ModelError."""
    plan = keeper.read("plan")
    if plan is not None and order.steps not in (None, plan["steps"]):
        raise ModelError(
            f"{keeper.directory} holds an unfinished training of {plan['steps']} steps: give --steps {plan['steps']}, "
            "or remove the directory to begin anew."
        )
    if plan is None:
        costs = measured(bench)
        steps = order.steps or steps_for(bench, costs, 60 * order.minutes - (time.monotonic() - began))
        plan = {"steps": steps, "seconds": asdict(costs)}
        keeper.write("plan", plan)
    return replace(bench, steps=plan["steps"], costs=Costs(**plan["seconds"]))


def _trained(bench: Bench, keeper: Keeper, meter: Meter, dtype: torch.dtype) -> Outcome:
    """Trains everything that is not yet trained."""
    numbers = range(1, len(bench.experts))
    fitted = [fit(expert_task(bench, number), keeper, meter, bench.model.device) for number in numbers]
    chosen = [_chosen(bench, number, each, keeper, meter) for number, each in zip(numbers, fitted, strict=True)]
    twin = fit(twin_task(bench), keeper, meter, bench.model.device) if bench.settings.baseline else None
    stored = together([each.stored for each in chosen])
    sizes = input_sizes(bench)
    routed = fit(router_task(bench, dense(stored), sizes), keeper, meter, bench.model.device)
    return Outcome(
        bench=bench,
        stored=stored,
        routers=unscaled(routed.parameters[ROUTERS], sizes).to(dtype).float(),  # as they are written
        twin=None if twin is None else twin.parameters,
        scales=tuple(each.scale for each in chosen),
        validation=tuple(each.validation for each in chosen),
        curves={expert.name: each.curve for expert, each in zip(bench.experts[1:], fitted, strict=True)}
        | ({} if twin is None else {"dense twin": twin.curve})
        | {"routers": routed.curve},
    )


@dataclass(frozen=True, slots=True, eq=False)
class Chosen:
    """Chosen is an expert's change at the scale that validation has chosen, in 8 bits."""

    stored: dict[str, Rounded]
    scale: float
    validation: tuple[float, ...]  # the loss at each of SCALES


def _chosen(bench: Bench, number: int, fitted: Fitted, keeper: Keeper, meter: Meter) -> Chosen:
    name, title = f"chosen-{number}", f"choosing the scale of expert {bench.experts[number].name}"
    found = keeper.finished(name, bench.model.device)
    if found is None:
        done = 0

        def passed(documents: int, seconds: float) -> None:
            nonlocal done
            done += documents
            meter.advance(title, done, done, seconds)

        scale, losses = best_scale(bench, number, fitted.parameters, passed)
        found = packed(rounded(scaled(fitted.parameters, scale)))
        found |= {"scale": torch.tensor(scale), "validation": torch.tensor(losses, dtype=torch.float64)}
        keeper.finish(name, found)
    return Chosen(unpacked(found), found["scale"].item(), tuple(found["validation"].tolist()))


def _written(order: Order, checked: Checked, outcome: Outcome, meter: Meter) -> dict[str, Any]:
    """Writes what was asked for, which appears at the end, and returns the report. Raises ModelError."""
    bench = outcome.bench
    directory = order.work / "model"
    try:
        directory.mkdir(exist_ok=True)
        about = write_report(directory, outcome, order.name, meter)
        if order.deltas is not None:
            Deltas(outcome.stored, outcome.routers.to(checked.dtype), about).write(order.work / "deltas")
        if order.out is not None:
            experts: dict[str, Tensor] = dense(outcome.stored)
            made = SparseCheckpoint(
                order.source, checked.family, bench.model, experts, outcome.routers, bench.settings.top_k, checked.dtype
            )
            for done in write_checkpoint(directory, made):
                meter.tell("writing the sparse model", done, bench.model.config.num_hidden_layers, "")
        _publish(order, directory)
    except OSError as error:
        raise unwritten(order.work, error) from None
    return about


def _publish(order: Order, directory: Path) -> None:
    """Gives everything its own name. Raises OSError."""
    if order.deltas is not None:
        order.deltas.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(order.work / "deltas", order.deltas)
    if order.out is not None:
        directory.rename(order.out)
    else:
        for report in directory.iterdir():
            shutil.move(report, order.target.with_name(f"{order.target.stem}-{report.name}"))
