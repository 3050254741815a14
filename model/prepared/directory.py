"""Makes a directory that serves without its checkpoint: it copies all files but the weights."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from octavo.model.config_file import ModelError
from octavo.model.prepared.places import variants
from octavo.model.prepared.source import INDEX
from octavo.model.prepared.writer import hidden

COPIED = ("*.json", "*.jinja", "additional_chat_templates/*.jinja", "LICENSE*", "NOTICE*")


def copy_all_but_weights(checkpoint: Path, out: Path) -> None:
    """Copies what else is served of a checkpoint: configuration, tokenizer, templates. Raises ModelError and OSError.

    Each file appears whole. A directory that holds another model is left alone.
    """
    if out.resolve() == checkpoint.resolve():
        return
    _require_own(checkpoint, out)
    for path in _served(checkpoint):
        target = out / path.relative_to(checkpoint)
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = hidden(target, "partial")
        shutil.copyfile(path, unfinished)
        unfinished.rename(target)


def _served(checkpoint: Path) -> Iterator[Path]:
    paths = sorted({path for pattern in COPIED for path in checkpoint.glob(pattern)})
    return (path for path in paths if path.is_file() and path.name != INDEX)


def _require_own(checkpoint: Path, out: Path) -> None:
    """Raises ModelError for a directory with something else in it than an earlier run has left."""
    if any(out.glob("*.safetensors")):
        raise ModelError(f"{out} holds weights of its own: give another directory with --out.")
    theirs, ours = out / "config.json", checkpoint / "config.json"
    if theirs.exists() and not variants(out) and theirs.read_bytes() != ours.read_bytes():
        raise ModelError(f"{out} holds the config.json of another model: give another directory with --out.")
