"""Writes files that are whole whenever they are there, also after a power cut."""

import os
from pathlib import Path

from octavo.model.prepared.writer import hidden, sync


def write_whole(path: Path, contents: bytes) -> None:
    """Replaces a file at once. Raises OSError, and then leaves what was there."""
    unfinished = hidden(path, "partial")
    try:
        with unfinished.open("wb") as file:
            file.write(contents)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise
    sync(path.parent)
