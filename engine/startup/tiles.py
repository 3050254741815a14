"""Finds the tile file that the flags ask for, before torch is loaded, and says why one is not used."""

import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path

from octavo.engine.api import Progress, ReportProgress
from octavo.engine.config import EngineConfig
from octavo.model.config import ModelError
from octavo.model.prepared.places import Checkpoint, Flags, variants
from octavo.model.prepared.source import Hashed
from octavo.model.prepared.tile_file import TileFile, Unusable

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Found:
    """A Found is the weights that there are for some flags, in one form or another."""

    config: EngineConfig  # as it was given
    checkpoint: Checkpoint
    file: TileFile | None = None  # None: the source is read
    refused: str | None = None  # a clause about a tile file that cannot be used

    @property
    def on_cpu(self) -> EngineConfig:
        """Returns the config with what `auto` means on a CPU: in a prepared directory, a file that is there."""
        flags = self.checkpoint.choose(Flags(self.config.dtype, self.config.quantization))
        return replace(self.config, dtype=flags.dtype, quantization=flags.quantization)

    @property
    def readable(self) -> Path:
        """Returns the directory whose weights can be read. Raises ModelError where a prepared directory has none."""
        directory = self.checkpoint.directory
        if self.checkpoint.source is not None:
            return Path(self.checkpoint.source.directory)
        if not (there := variants(directory)):
            return directory  # Whoever reads it says what is missing.
        if self.refused is not None:
            raise ModelError(
                f"{self.refused}, and there is no checkpoint to read instead: run `octavo prepare` on the checkpoint "
                "again."
            )
        flags = " or ".join(_flags_for(variant) for variant in there)
        raise ModelError(
            f"{directory} was prepared for {flags} on a CPU, and the checkpoint that it was made from is gone: "
            "serve it with these flags, or run `octavo prepare` on the checkpoint again."
        )

    def without(self, path: Path, error: Unusable) -> "Found":
        """Returns what is left without a tile file that cannot be used, and says why."""
        log.warning("%s is not used: %s", path, error)
        return replace(self, file=None, refused=f"{path} cannot be used ({error})")


def find(config: EngineConfig, report: ReportProgress) -> Found:
    """Returns the first tile file that fits the flags, and is sound and of the same source; a GPU needs none."""
    checkpoint = Checkpoint.of(Path(config.model), None if config.cache is None else Path(config.cache))
    found = Found(config, checkpoint)
    if config.device == "cuda":
        return found
    flags = Flags(found.on_cpu.dtype, found.on_cpu.quantization)
    for path in checkpoint.candidates(flags):
        try:
            hashed = _verifying(report, path, checkpoint) if config.verify else lambda count: None
            return replace(found, file=checkpoint.open(path, config.verify, hashed))
        except Unusable as error:
            found = found.without(path, error)
    if checkpoint.is_prepared and checkpoint.source is not None:
        log.warning("%s has no tile file for these flags: %s is read", config.model, checkpoint.source.directory)
    return found


def is_writable(directory: Path) -> bool:
    """Returns whether files can be made in the directory, or in the nearest one above it that is there."""
    there = next(each for each in (directory, *directory.parents) if each.exists())
    return there.is_dir() and os.access(there, os.W_OK)


def _flags_for(variant: str) -> str:
    flags = Flags.for_variant(variant)
    return f"--quantization {flags.quantization}" if flags.dtype == "auto" else f"--dtype {flags.dtype}"


def _verifying(report: ReportProgress, path: Path, checkpoint: Checkpoint) -> Hashed:
    """Returns what reports how much of the file and of its source was read."""
    total = path.stat().st_size + (checkpoint.source.size if checkpoint.source else 0)
    done = 0

    def hashed(count: int) -> None:
        nonlocal done
        done += count
        report(Progress("verifying weights", min(done, total), total))

    return hashed
