"""Guards the directory in which a training's unfinished work lies: one process at a time, and one order."""

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from octavo.model.config import ModelError
from octavo.model.train.keeper import Keeper, unwritten


@contextmanager
def alone(work: Path, target: Path) -> Iterator[None]:
    """Holds the directory of the work that ends in `target`. Raises ModelError if another process does."""
    try:
        work.mkdir(parents=True, exist_ok=True)
        file = (work / "lock").open("w")
    except OSError as error:
        raise unwritten(work, error) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ModelError(f"Another process trains {target}: wait for it, or give another --out.") from None
        yield


def own(keeper: Keeper, identity: dict[str, Any]) -> None:
    """Begins the work, or sees that what is there is the same. Raises ModelError."""
    before = keeper.read("identity")
    if before is None:
        keeper.write("identity", identity)
    elif different := [key for key, value in identity.items() if before.get(key) != json.loads(json.dumps(value))]:
        raise ModelError(
            f"{keeper.directory} holds an unfinished training with another {' and '.join(different)}: repeat its "
            "command, or remove the directory to begin anew."
        )


def check_absent(out: Path) -> None:
    """Raises ModelError where the directory to write is there already, unless it is empty."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ModelError(f"{out} is there already: give --out a new directory, or move the old one away.")
