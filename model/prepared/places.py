"""Knows where the tile files of a checkpoint lie, and which of them answers to which flags."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from octavo.model.prepared.source import Hashed, Source
from octavo.model.prepared.tile_file import TileFile, Unusable

QUANTISED = ("int8", "int4")  # by what a quantisation of "auto" would rather have
PLAIN = ("float32", "bfloat16", "float16")


def kept(variant: str) -> str:
    """Returns the variant that has what the checkpoint quantised, and the rest as in another variant."""
    return f"kept-{variant}"


KEPT = tuple(map(kept, ("int8", *PLAIN)))


@dataclass(frozen=True, slots=True)
class Flags:
    """Flags are the two flags that choose among the tile files of a checkpoint."""

    dtype: str
    quantization: str

    @classmethod
    def for_variant(cls, variant: str) -> "Flags":
        """Returns flags that ask for a variant, and for nothing else."""
        if variant in KEPT:
            others = variant.removeprefix(kept(""))
            return cls(others if others in PLAIN else "auto", "auto")
        return cls("auto", variant) if variant in QUANTISED else cls(variant, "none")

    @property
    def variants(self) -> tuple[str, ...]:
        """Returns the variants that they may mean on a CPU: `auto` keeps what a checkpoint has quantised."""
        if self.quantization in QUANTISED:
            return (self.quantization,)
        if self.dtype in PLAIN and self.quantization in ("auto", "none"):
            return (kept(self.dtype), self.dtype) if self.quantization == "auto" else (self.dtype,)
        return (kept("int8"), "int8") if (self.dtype, self.quantization) == ("auto", "auto") else ()


def name_of(variant: str) -> str:
    """Returns the name of the tile file of a variant."""
    return f"octavo-{variant}.tiles"


def places(directory: Path, cache: Path | None) -> list[Path]:
    """Returns the directories in which a checkpoint's tile files are looked for: its own, and one in the cache."""
    own = directory.resolve()
    if cache is None:
        return [own]
    return [own, cache / "tiles" / f"{own.name}-{hashlib.sha256(os.fsencode(own)).hexdigest()[:16]}"]


def variants(directory: Path) -> list[str]:
    """Returns the variants for which a directory has a tile file, in the order of preference."""
    return [variant for variant in (*KEPT, *QUANTISED, *PLAIN) if (directory / name_of(variant)).is_file()]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A Checkpoint is a directory that is served, with the weights and the tile files that belong to it."""

    directory: Path
    source: Source | None  # its weights: in the directory, or where it was prepared from; None: they are gone
    cache: Path | None  # the user's cache

    @classmethod
    def of(cls, directory: Path, cache: Path | None) -> "Checkpoint":
        """Finds the weights. A prepared directory has none, and its tile files know where they were."""
        source = Source.of(directory)
        for variant in () if source else variants(directory):
            try:
                with TileFile.open(directory / name_of(variant)) as file:
                    source = Source.of(Path(file.identity.source.directory))
            except Unusable:
                continue
            if source is not None:
                break
        return cls(directory, source, cache)

    @property
    def is_prepared(self) -> bool:
        """Returns whether the directory lives by its tile files: it has no weights of its own."""
        here = self.source is not None and self.source.directory == str(self.directory.absolute())
        return not here and bool(variants(self.directory))

    def choose(self, flags: Flags) -> Flags:
        """Returns the flags with what `auto` means: in a prepared directory, the best of what is there."""
        if flags == Flags("auto", "auto") and self.is_prepared:
            return Flags.for_variant(variants(self.directory)[0])
        return flags

    def candidates(self, flags: Flags) -> Iterator[Path]:
        """Yields the tile files that these flags might mean, the one beside the checkpoint first."""
        for variant in flags.variants:
            paths = (place / name_of(variant) for place in places(self.directory, self.cache))
            yield from (path for path in paths if path.is_file())

    def open(self, path: Path, verify: bool, hashed: Hashed = lambda count: None) -> TileFile:
        """Opens a tile file and compares it with the source, if that is there. Raises Unusable.

        With `verify` all contents are read and compared.
        """
        file = TileFile.open(path)
        try:
            self._compare(file, verify, hashed)
        except Unusable:
            file.close()
            raise
        return file

    def _compare(self, file: TileFile, verify: bool, hashed: Hashed) -> None:
        recorded, now = file.identity.source, self.source
        if now is not None and (change := recorded.change(now, times=not verify)):
            raise Unusable(f"its source has changed: {change}")
        if not verify:
            return
        file.verify(hashed)
        try:
            if now is not None and (change := recorded.other_contents(now, hashed)):
                raise Unusable(f"its source has changed: {change}")
        except OSError as error:
            raise Unusable(f"its source cannot be read ({error.strerror})") from None
