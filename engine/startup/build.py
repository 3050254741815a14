"""Build: from the flags to an engine, in the engine's own process; what takes long to import is imported here."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from octavo.engine.api import Ready, ReportProgress
from octavo.engine.config import EngineConfig
from octavo.engine.startup import machine, sizing
from octavo.model.config import ModelConfig
from octavo.model.weights.reserve import Reserve

if TYPE_CHECKING:
    from octavo.engine.compute.runner import DeviceStep
    from octavo.engine.engine import Engine


def build(config: EngineConfig, report: ReportProgress) -> tuple["Engine[DeviceStep]", Ready]:
    """Loads the model and sizes everything to the machine.

    Raises model.config.ModelError, with a sentence for the user, for whatever starting again would not change.
    """
    reserve = _reserve(config)
    with _modules_to_keep():
        from octavo.engine.engine import Engine
        from octavo.engine.schedule.blocks import BlockPool
        from octavo.engine.schedule.scheduler import Scheduler
        from octavo.engine.startup.start import start  # torch loads here

    runner, limits, ready = start(config, report, reserve)
    pool = BlockPool(runner.cache.num_blocks, runner.cache.block_size)
    return Engine(Scheduler(pool, limits), runner), ready


def _reserve(config: EngineConfig) -> Reserve | None:
    """Memory for weights, taken while torch is imported; None where that would help little or might be in the way."""
    shape = ModelConfig.from_pretrained(Path(config.model))
    size = sizing.reserve_bytes(config, shape, machine.available_memory())
    return Reserve(size) if size > 0 else None


@contextmanager
def _modules_to_keep() -> Iterator[None]:
    """What is imported within lives as long as the process: the garbage collector does not look for it, then or later.

    Torch makes so many objects that looking through them again and again takes a fifth of its import.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
