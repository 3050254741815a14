"""Reads a tile file: its head is checked before anything in it is used, and its extents are then mapped.

    0           head      4,096 bytes: a line of JSON, which says where the header is, how long, and its SHA-256
    4,096       extents   each a multiple of 4,096 bytes long: first what every token needs, then expert by expert
    to the end  header    JSON: what the file was made from, and the place and the form of each matrix

An extent holds the matrices of one expert, or a few others, each at a multiple of 64 bytes. The numbers are those that
the kernels compute with, little-endian, so that a mapped file is a model.
"""

import hashlib
import json
import mmap
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

from octavo.model.prepared.source import CHUNK, Hashed, Source

# The number rises with each change of this format, of a layout in weights/tiles.py, or of how weights are quantised.
FORMAT = 1
HEAD = 4096  # bytes
EXTENT = 4096  # bytes that the sizes and places of extents are multiples of
ALIGNED = 64  # bytes that the places of matrices are multiples of
MOST_HEADER = 1 << 30  # bytes


class Unusable(Exception):
    """A tile file cannot be used; the message is a clause that says why."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A Piece is a matrix or a vector in a tile file."""

    name: str
    offset: int  # bytes, from the beginning of the file
    size: int  # bytes
    form: dict[str, Any]  # what the bytes mean, as loading/forms.py writes it


@dataclass(frozen=True, slots=True)
class Extent:
    """An Extent is consecutive bytes of a tile file that are read together, such as an expert."""

    name: str
    offset: int  # bytes, a multiple of EXTENT
    size: int  # bytes, a multiple of EXTENT
    sha256: str
    pieces: tuple[Piece, ...]

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Raises TypeError or KeyError for what asdict did not return, ValueError for places that cannot be."""
        pieces = tuple(Piece(**piece) for piece in values["pieces"])
        extent = cls(**{**values, "pieces": pieces})
        end = extent.offset + extent.size
        if extent.offset < HEAD or extent.size < 0 or extent.offset % EXTENT or extent.size % EXTENT:
            raise ValueError("an extent lies where none can be")
        if any(not extent.offset <= piece.offset <= piece.offset + piece.size <= end for piece in pieces):
            raise ValueError("a piece lies outside of its extent")
        if any(piece.offset % ALIGNED for piece in pieces):
            raise ValueError("a piece is not aligned")
        return extent


@dataclass(frozen=True, slots=True)
class Identity:
    """An Identity says what a tile file holds: two files of one identity are the same, byte for byte."""

    variant: str  # the quantisation or the dtype, which is also in the file's name
    precision: dict[str, Any]  # how the model is held and computed, as loading/forms.py writes it
    tied: bool  # the embedding is also the head
    source: Source
    octavo: str  # the version that wrote the file
    format: int = FORMAT
    byteorder: str = sys.byteorder

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Raises TypeError or KeyError for what `to_json` did not return."""
        return cls(**{**values, "source": Source.from_json(values["source"])})

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True, eq=False)
class TileFile:
    """A TileFile is an open file whose head and header are sound. It stays the same file if its name gets another."""

    path: Path
    file: BinaryIO
    identity: Identity
    extents: tuple[Extent, ...]
    digest: str  # SHA-256 of the header, and so of all that it has hashes of

    @classmethod
    def open(cls, path: Path) -> "TileFile":
        """Raises Unusable."""
        try:
            file = path.open("rb", buffering=0)
        except OSError as error:
            raise Unusable(f"it cannot be opened ({error.strerror})") from None
        try:
            return cls._read(path, file)
        except Unusable:
            file.close()
            raise
        except OSError as error:
            file.close()
            raise Unusable(f"it cannot be read ({error.strerror})") from None
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
            file.close()
            raise Unusable("its header is damaged") from None

    @classmethod
    def _read(cls, path: Path, file: BinaryIO) -> "TileFile":
        head = json.loads(file.read(HEAD))
        if head["octavo_tiles"] != FORMAT:
            raise Unusable(f"it is of format {head['octavo_tiles']!r:.20}, and this version of Octavo reads {FORMAT}")
        offset, size = int(head["offset"]), int(head["size"])
        if file.seek(0, 2) != offset + size or not 0 <= size <= MOST_HEADER:
            raise Unusable(f"it has {file.tell():,} bytes, and {offset + size:,} were written")
        file.seek(offset)
        text = file.read(size)
        if hashlib.sha256(text).hexdigest() != head["sha256"]:
            raise Unusable("its header was altered")
        header = json.loads(text)
        identity = Identity.from_json(header["identity"])
        extents = tuple(map(Extent.from_json, header["extents"]))
        if identity.byteorder != sys.byteorder:
            raise Unusable(f"its numbers are {identity.byteorder}-endian")
        if any(extent.offset + extent.size > offset for extent in extents):
            raise Unusable("its header is damaged")
        return cls(path, file, identity, extents, head["sha256"])

    @property
    def size(self) -> int:
        """Returns the bytes of all extents."""
        return sum(extent.size for extent in self.extents)

    def verify(self, hashed: Hashed = lambda count: None) -> None:
        """Reads all extents. Raises Unusable if one was altered."""
        with self.map() as mapped, memoryview(mapped) as memory:
            for extent in self.extents:
                if _hash_of(memory[extent.offset : extent.offset + extent.size], hashed) != extent.sha256:
                    raise Unusable(f"its part {extent.name} was altered")

    def map(self) -> mmap.mmap:
        """Maps the file, to be read only; all processes that do so share one copy, and nothing is read yet.

        Where the file system can, what is read from the disk then lies in huge pages, which are faster.
        """
        mapped = mmap.mmap(self.file.fileno(), 0, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with suppress(OSError):  # The system's kernel may lack them.
                mapped.madvise(mmap.MADV_HUGEPAGE)
        return mapped

    def close(self) -> None:
        """Closes the file; what is mapped stays."""
        self.file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _hash_of(memory: memoryview, hashed: Hashed) -> str:
    """Returns the SHA-256 of mapped memory, which is read in huge pages that way."""
    digest = hashlib.sha256()
    for at in range(0, len(memory), CHUNK):
        with memory[at : at + CHUNK] as part:
            digest.update(part)
            hashed(len(part))
    return digest.hexdigest()


def hash_of_range(file: BinaryIO, offset: int, size: int, hashed: Hashed = lambda count: None) -> str:
    """Returns the SHA-256 of so many bytes of a file, or of as many as there are. Raises OSError."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(CHUNK))
    file.seek(offset)
    while size and (count := file.readinto(buffer[: min(size, CHUNK)])):  # type: ignore[attr-defined]
        digest.update(buffer[:count])
        hashed(count)
        size -= count
    return digest.hexdigest()
