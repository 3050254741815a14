"""Writes a tile file under a hidden name, and renames it when all of it is on the disk.

Nothing is ever written into a file that has its final name, because it may be mapped. A journal beside the hidden file
lists the extents that are complete, with their hashes; whoever is interrupted goes on behind the last one that fits.
"""

import errno
import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO, Self

from octavo.model.config_file import ModelError
from octavo.model.prepared.source import Source
from octavo.model.prepared.tile_file import ALIGNED, EXTENT, FORMAT, HEAD, Extent, Identity, Piece, hash_of_range

# So many bytes are written at once, at a multiple of them. Then the system keeps the file in its page cache in pages of
# 2 MiB, where the file system can, and maps those.
CHUNK = 8 << 20

Bytes = tuple[str, dict[str, Any], memoryview]  # a piece: its name, its form, its contents


class Busy(Exception):
    """Another process writes the same file."""


class Partial:
    """A Partial is a tile file that is not complete yet."""

    def __init__(self, target: Path, identity: Identity) -> None:
        """Takes up what an earlier run of the same identity has left. The caller has the lock. Raises OSError."""
        self.target = target
        self.path, self._journal_path = hidden(target, "partial"), hidden(target, "journal")
        self._identity = identity
        self.extents: list[Extent] = []
        self._file: BinaryIO = os.fdopen(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0)
        self.extents += self._left()
        self._pending = bytearray()  # what comes behind the last whole chunk
        self._begin()
        self._journal = self._journal_path.open("w", encoding="utf-8")
        self._note(identity.to_json())
        self._noted = 0  # extents
        self._note_extents(self.end)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()
        self._journal.close()

    @property
    def end(self) -> int:
        """Returns where the next extent goes."""
        return self.extents[-1].offset + self.extents[-1].size if self.extents else HEAD

    def add(self, name: str, pieces: list[Bytes]) -> None:
        """Writes an extent behind the others. Raises OSError."""
        offset = place = self.end
        digest, placed = sha256(), []
        for piece, form, contents in pieces:
            placed.append(Piece(piece, place, contents.nbytes, form))
            place += contents.nbytes + -contents.nbytes % ALIGNED
            for part in (contents, bytes(-contents.nbytes % ALIGNED)):
                self._write(part)
                digest.update(part)
        padding = bytes(-place % EXTENT)
        self._write(padding)
        digest.update(padding)
        self.extents.append(Extent(name, offset, place + len(padding) - offset, digest.hexdigest(), tuple(placed)))
        self._note_extents(self._file.tell())

    def publish(self, source: Source) -> None:
        """Writes the header, and gives the file its name once all is on the disk. `source` has contents' hashes."""
        identity = self._identity.to_json() | {"source": source.to_json()}
        header = json.dumps({"identity": identity, "extents": [asdict(extent) for extent in self.extents]}).encode()
        head = {"octavo_tiles": FORMAT, "offset": self.end, "size": len(header), "sha256": sha256(header).hexdigest()}
        self._put(self._pending + header)
        self._file.seek(0)
        self._put(json.dumps(head).encode().ljust(HEAD - 1) + b"\n")
        os.fsync(self._file.fileno())
        self.path.rename(self.target)
        sync(self.target.parent)
        self._journal_path.unlink()

    def discard(self) -> None:
        """Removes what was written."""
        for path in (self.path, self._journal_path):
            path.unlink(missing_ok=True)

    def _begin(self) -> None:
        """Goes to the end of the last whole chunk; what comes behind it is taken into memory, to be written again."""
        start = self.end - self.end % CHUNK if self.extents else 0
        self._file.truncate(self.end)
        self._file.seek(start)
        while len(self._pending) < self.end - start:
            self._pending += self._file.read(self.end - start - len(self._pending))
        self._file.seek(start)

    def _write(self, contents: bytes | memoryview) -> None:
        """Writes whole chunks, and keeps what is left for the next call."""
        rest = memoryview(contents).cast("B")
        while rest:
            if not self._pending and len(rest) >= CHUNK:
                whole = len(rest) // CHUNK * CHUNK
                self._put(rest[:whole])
                rest = rest[whole:]
                continue
            room = max(0, CHUNK - len(self._pending))
            self._pending += rest[:room]
            rest = rest[room:]
            if len(self._pending) >= CHUNK:
                self._put(self._pending)
                self._pending.clear()

    def _put(self, contents: bytes | bytearray | memoryview) -> None:
        rest = memoryview(contents)
        while rest:
            rest = rest[self._file.write(rest) :]
        rest.release()

    def _note_extents(self, end: int) -> None:
        """Notes the extents up to a place in the file."""
        while self._noted < len(self.extents):
            extent = self.extents[self._noted]
            if extent.offset + extent.size > end:
                return
            self._note(asdict(extent))
            self._noted += 1

    def _note(self, values: Mapping[str, Any]) -> None:
        self._journal.write(json.dumps(values) + "\n")
        self._journal.flush()

    def _left(self) -> Iterator[Extent]:
        """Yields the extents that an earlier run has completed, as far as the file holds what its journal says."""
        with suppress(OSError, ValueError, TypeError, KeyError):  # A line may be cut off.
            lines = self._journal_path.read_text("utf-8").splitlines()
            if not lines or json.loads(lines[0]) != json.loads(json.dumps(self._identity.to_json())):
                return
            end = HEAD
            for line in lines[1:]:
                extent = Extent.from_json(json.loads(line))
                whole = extent.offset == end and hash_of_range(self._file, end, extent.size) == extent.sha256
                if not whole:
                    return
                yield extent
                end += extent.size


@contextmanager
def locked(target: Path, wait: Callable[[], None] | None) -> Iterator[None]:
    """Lets one process at a time write the file; `wait` is called before waiting. Raises Busy where it is None.

    The system frees the lock when its holder dies. The holder removes the lock's file, so whoever gets the lock looks
    whether the file is still the one of that name.
    """
    path = hidden(target, "lock")
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _lock(handle, wait)
        while not _is_named(handle, path):
            os.close(handle)
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            _lock(handle, wait)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
    finally:
        os.close(handle)


def _is_named(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _lock(handle: int, wait: Callable[[], None] | None) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if wait is None:
            raise Busy from None
        wait()
        fcntl.flock(handle, fcntl.LOCK_EX)


def hidden(target: Path, role: str) -> Path:
    """Returns a hidden name beside the target."""
    return target.with_name(f".{target.name}.{role}")


def sync(directory: Path) -> None:
    """Brings a directory's names to the disk. Raises OSError."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def disk_full(error: OSError, target: Path) -> ModelError | None:
    """Returns what to tell about a full disk; None for another error."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return None
    return ModelError(
        f"{target} could not be written ({error.strerror}), and nothing of it was left: make room there, or write it "
        "elsewhere with --out."
    )
