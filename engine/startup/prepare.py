"""Prepares a checkpoint: it writes a tile file beside it, in the user's cache, or into a directory of its own."""

import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from octavo.engine.api import Progress, ReportProgress
from octavo.engine.config import EngineConfig
from octavo.engine.startup import machine
from octavo.engine.startup.tiles import is_writable
from octavo.model.config import ModelConfig, ModelError
from octavo.model.kernels.choice import select_backend
from octavo.model.kernels.cpu.library import library
from octavo.model.loading.choice import precision_for, weight_bytes
from octavo.model.loading.forms import can_be_mapped, precision_form, variant_of
from octavo.model.loading.prepare import Order, write_checkpoint
from octavo.model.loading.shards import Shards
from octavo.model.prepared.directory import copy_all_but_weights
from octavo.model.prepared.places import Checkpoint, name_of, places
from octavo.model.prepared.source import Source
from octavo.model.prepared.tile_file import Unusable
from octavo.model.prepared.writer import hidden, locked
from octavo.model.weights.precision import Precision, Wanted

CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Prepared:
    """A Prepared is a tile file, and whether it had been there already."""

    path: Path
    was_there: bool


def prepare(config: EngineConfig, out: Path | None, report: ReportProgress) -> Prepared:
    """Writes the tile file that the flags ask for, unless it is there and good. Raises ModelError and OSError.

    With `out`, that directory gets all that is served of the checkpoint.
    """
    torch.set_num_threads(config.threads or min(machine.processors(), torch.get_num_threads()))
    directory = Path(config.model)
    model_config = ModelConfig.from_pretrained(directory)
    wanted = Wanted(config.dtype, config.quantization)
    precision = precision_for(directory, wanted, model_config, CPU, library() is not None)
    _check(precision)
    checkpoint = Checkpoint.of(directory, None if config.cache is None else Path(config.cache))
    source = _source(checkpoint)
    place = out or next((each for each in places(directory, checkpoint.cache) if is_writable(each)), None)
    if place is None:
        raise ModelError(f"Neither {directory} nor the user's cache can be written: give a directory with --out.")
    place.mkdir(parents=True, exist_ok=True)
    target = place / name_of(variant_of(precision))

    def wait() -> None:
        report(Progress("waiting for another process that prepares this", 0, 1))

    with locked(target, wait):
        was_there = _is_good(target, checkpoint, precision, config.verify)
        if not was_there:
            _require_space(target, weight_bytes(Path(source.directory), model_config, precision))
        if out is not None:
            copy_all_but_weights(directory, out)
        if was_there:
            return Prepared(target, was_there)

        def written(what: str, done: int, total: int) -> None:
            report(Progress(what, done, total))

        order = Order(target, variant_of(precision), source, written, torch.get_num_threads())
        write_checkpoint(order, model_config, select_backend(model_config, CPU), precision)
    return Prepared(target, was_there)


def _check(precision: Precision) -> None:
    """Raises ModelError for weights that cannot lie in a file."""
    if not can_be_mapped(precision):
        raise ModelError(
            f"Weights in {precision.describe()} cannot be prepared, since FBGEMM packs them anew at each start: "
            "use --quantization int8 or int4, or --dtype float32 or bfloat16 with --quantization none."
        )


def _source(checkpoint: Checkpoint) -> Source:
    """Returns the weights to prepare. Raises ModelError where there are none."""
    if checkpoint.source is not None:
        return checkpoint.source
    if checkpoint.is_prepared:
        raise ModelError(
            f"{checkpoint.directory} was prepared, and the checkpoint that it was made from is gone: "
            "give the path of that checkpoint."
        )
    with ExitStack() as stack:
        Shards.open(checkpoint.directory, stack)  # It says what is missing.
    raise ModelError(f"The weights in {checkpoint.directory} cannot be read: download them again.")


def _is_good(target: Path, checkpoint: Checkpoint, precision: Precision, verify: bool) -> bool:
    """Returns whether a file is there that a server would map."""
    if not target.exists():
        return False
    try:
        file = checkpoint.open(target, verify)
    except Unusable:
        return False
    file.close()
    return file.identity.precision == precision_form(precision)


def _require_space(target: Path, size: int) -> None:
    """Raises ModelError where the disk has no room for what is not written yet."""
    unfinished = hidden(target, "partial")
    missing = size - (unfinished.stat().st_size if unfinished.exists() else 0)
    free = shutil.disk_usage(target.parent).free
    if free < missing:
        raise ModelError(
            f"A tile file takes {missing / 1e9:.2f} GB in {target.parent}, where {free / 1e9:.2f} GB are free: "
            "make room there, or write it elsewhere with --out."
        )
