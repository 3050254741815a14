"""Maps the tile file that was found, or writes one of what a slow start has quantised, while the engine serves."""

import logging
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from threading import Thread, get_native_id

from octavo.engine.startup import machine
from octavo.engine.startup.tiles import Found, is_writable
from octavo.model.config import ModelConfig, ModelError
from octavo.model.decoder import Decoder
from octavo.model.kernels.choice import Backend
from octavo.model.loading.forms import can_be_mapped, variant_of
from octavo.model.loading.mapped import map_model
from octavo.model.loading.prepare import Order, write_model
from octavo.model.prepared.places import name_of, places
from octavo.model.prepared.tile_file import Unusable
from octavo.model.prepared.writer import Busy, locked
from octavo.model.weights.precision import Precision

SLOW = 256 << 20  # bytes of weights from which on a start from the checkpoint counts as slow
LEFT = 0.2  # share of a disk that stays free
NICENESS = 19

log = logging.getLogger(__name__)


def map_if_fitting(
    found: Found, model_config: ModelConfig, backend: Backend, precision: Precision
) -> tuple[Decoder | None, Found]:
    """Maps the tile file as a model, if there is one and it fits a CPU; else it is no longer in what was found."""
    if found.file is None:
        return None, found
    with found.file as file:
        if backend.device.type != "cpu":
            return None, replace(found, file=None)
        try:
            fits = file.size <= machine.available_memory()
            return map_model(file, model_config, backend, precision, fetched=fits), found
        except Unusable as error:
            return None, found.without(file.path, error)


def keep(found: Found, model: Decoder) -> tuple[str, ...]:
    """Starts to write the tile file if the flags allow it and there is room. Returns lines for the log."""
    source = found.checkpoint.source
    if source is None or not _is_worth_it(found, model):
        return ()
    variant = variant_of(model.precision)
    directories = [directory for directory in _places(found) if is_writable(directory)]
    roomy = [directory for directory in directories if _has_room(directory, model.weight_bytes)]
    if not directories:
        return ("The next start quantises again: no place for a tile file can be written.",)
    if not roomy:
        return (
            f"The next start quantises again: a tile file of {model.weight_bytes / 1e9:.1f} GB would leave less than "
            f"{LEFT:.0%} of the disk free. `octavo prepare` writes one all the same.",
        )
    order = Order(roomy[0] / name_of(variant), variant, source)
    Thread(target=_write, args=(order, model), name="prepare", daemon=True).start()
    return (
        f"The weights are being written to {order.target}, so that the next start is quick (unless --prepare never).",
    )


def _is_worth_it(found: Found, model: Decoder) -> bool:
    slow = model.precision.is_quantised and model.weight_bytes >= SLOW
    return found.config.prepare == "auto" and slow and model.device.type == "cpu" and can_be_mapped(model.precision)


def _places(found: Found) -> list[Path]:
    return places(found.checkpoint.directory, found.checkpoint.cache)


def _has_room(directory: Path, size: int) -> bool:
    there = next(each for each in (directory, *directory.parents) if each.exists())
    usage = shutil.disk_usage(there)
    return usage.free - size >= LEFT * (usage.used + usage.free)  # What is neither is root's, and `df` leaves it out.


def _write(order: Order, model: Decoder) -> None:
    """Writes the file while others have nothing to do; the log tells how that went. A thread's."""
    if sys.platform == "linux":  # a thread has a priority of its own here
        os.setpriority(os.PRIO_PROCESS, get_native_id(), NICENESS)
    try:
        order.target.parent.mkdir(parents=True, exist_ok=True)
        with locked(order.target, wait=None):
            write_model(order, model)
        log.info("%s is written: the next start maps it", order.target)
    except Busy:
        log.info("%s is being written by another process", order.target)
    except (OSError, ModelError) as error:
        log.warning("%s is not written: %s", order.target, error)
