"""Builds an engine from its flags, in the engine's own process; what takes long to import is imported here."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from octavo.engine.api import Ready, ReportProgress
from octavo.engine.config import EngineConfig
from octavo.engine.startup import machine, sizing, tiles
from octavo.model.config import ModelConfig
from octavo.model.generation_config import GenerationConfig
from octavo.model.weights.reserve import Reserve

if TYPE_CHECKING:
    from octavo.engine.compute.runner import DeviceStep
    from octavo.engine.engine import Engine


def build(config: EngineConfig, report: ReportProgress) -> tuple["Engine[DeviceStep]", Ready]:
    """Loads the model and sizes everything to the machine.

    Raises model.config.ModelError, with a sentence for the user, for whatever starting again would not change.
    """
    directory = Path(config.model)
    model_config, generation = ModelConfig.from_pretrained(directory), GenerationConfig.from_pretrained(directory)
    sizing.check_max_model_len(config, model_config)
    found = tiles.find(config, report)
    reserve = _reserve(found, model_config)
    with _modules_to_keep():
        from octavo.engine.engine import Engine
        from octavo.engine.schedule.blocks import BlockPool
        from octavo.engine.schedule.scheduler import Scheduler
        from octavo.engine.startup.start import start  # This loads torch.

    runner, limits, ready = start(found, model_config, generation, report, reserve)
    pool = BlockPool(runner.cache.num_blocks, runner.cache.block_size)
    return Engine(Scheduler(pool, limits), runner), ready


def _reserve(found: tiles.Found, model_config: ModelConfig) -> Reserve | None:
    """Begins to take memory while torch is imported: for weights or, where these are mapped, for the KV cache.

    Returns None where a reserve would help little or might be in the way.
    """
    available = machine.available_memory()
    if found.file is not None:
        size = sizing.cache_bytes_to_reserve(found.config, found.file.size, available)
    else:
        size = sizing.bytes_to_reserve(found.config, model_config, available)
        size = min(size, found.checkpoint.source.size if found.checkpoint.source else size)  # of a quantised checkpoint
    return Reserve(size) if size > 0 else None


@contextmanager
def _modules_to_keep() -> Iterator[None]:
    """Keeps the garbage collector from what is imported within, then and later: it lives as long as the process.

    Torch makes so many objects that looking through them again and again takes a fifth of its import.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
