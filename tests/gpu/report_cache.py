"""Keeps the report of a long computation in a file that is named after a hash of all that the report depends on.

The file is written under another name and then renamed, so that it is whole or not there. A lock lets one process
compute while the others wait for its report. Where the directory cannot be written to, each process computes its own.
"""

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


def key_of(root: Path, sources: Iterable[Path], settings: Iterable[str]) -> str:
    """Returns a hash of the settings and of the sources: of their names below `root` and of their contents."""
    digest = hashlib.sha256()
    for part in (*settings, *(f"{path.relative_to(root)} {_sha256(path)}" for path in sorted(sources))):
        digest.update(part.encode() + b"\n")
    return digest.hexdigest()


def kept(directory: Path, key: str, compute: Callable[[], str], is_good: Callable[[str], bool]) -> str:
    """Returns the report that the directory holds under `key`; computes and keeps it if there is no good one."""
    with _locked(directory) as writable:
        path = directory / f"{key}.json"
        if (report := _read(path)) is not None and is_good(report):
            return report
        report = compute()
        if writable and is_good(report):
            _replace(path, report)
        return report


@contextmanager
def _locked(directory: Path) -> Iterator[bool]:
    """Holds the directory's lock, if it can; yields whether the directory can be written to."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = (directory / "lock").open("w")
    except OSError:
        yield False
        return
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield True


def _replace(path: Path, report: str) -> None:
    """Writes the report, and removes those of other keys."""
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_text(report, encoding="utf-8")
    partial.replace(path)
    for other in path.parent.glob("*.json"):
        if other != path:
            other.unlink()


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
