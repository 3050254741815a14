"""Reads what stands before the tensors of a GGUF file, and trusts none of it.

The format is described in https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

from octavo.model.config_file import ModelError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MOST_HEADER = 1 << 30  # bytes of everything before the tensors
MOST_STRING = 1 << 24  # bytes; a chat template is the longest
MOST_ITEMS = 1 << 23  # of all lists together; a vocabulary and its merges are the longest
MOST_NAMED = 1 << 20  # tensors or entries of metadata
MOST_DEPTH = 3  # of arrays within arrays
MOST_DIMENSIONS = 4
MOST_LENGTH = 1 << 40  # of a dimension
LEAST_ENTRY = 12  # bytes of the shortest entry: the length of its name, and a type

_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9

Metadata = dict[str, Any]  # numbers, booleans, strings, and lists of these


@dataclass(frozen=True, slots=True)
class Entry:
    """An Entry of the table of tensors, as it stands in the file."""

    name: str
    dimensions: tuple[int, ...]  # the innermost first
    type: int
    offset: int  # bytes from the first tensor's place


@dataclass(frozen=True, slots=True)
class Header:
    """A Header is the metadata of a file, its table of tensors, and the byte after both."""

    metadata: Metadata
    entries: tuple[Entry, ...]
    end: int

    @classmethod
    def read(cls, path: Path, data: mmap.mmap) -> "Header":
        """Raises ModelError that says in one sentence what is wrong with the file."""
        cursor = _Cursor(path, data, min(len(data), MOST_HEADER))
        if cursor.take(len(MAGIC)) != MAGIC:
            raise ModelError(f"{path} is no GGUF file: it does not begin with the letters GGUF.")
        version = cursor.number(4)
        if version not in VERSIONS:
            raise ModelError(
                f"{path} is a GGUF file of version {shortened(version)}, and only versions 2 and 3 in little-endian "
                "order are read; convert the model again with a newer llama.cpp."
            )
        tensors, entries = cursor.count("tensors", MOST_NAMED), cursor.count("entries of metadata", MOST_NAMED)
        metadata: Metadata = {}
        for _ in range(entries):
            name = cursor.string()
            if name in metadata:
                raise cursor.damaged(f"its metadata has {shortened(name)} twice")
            metadata[name] = cursor.value(cursor.number(4), MOST_DEPTH)
        return cls(metadata, tuple(cursor.entry() for _ in range(tensors)), cursor.at)


class _Cursor:
    """A _Cursor reads from a place on, and never beyond the end."""

    def __init__(self, path: Path, data: mmap.mmap, end: int) -> None:
        self._path, self._data, self._end = path, data, end
        self.at = 0
        self._items = MOST_ITEMS  # that lists may still have

    def damaged(self, what: str) -> ModelError:
        return ModelError(f"{self._path} is damaged: {what}; download it again.")

    def take(self, size: int) -> bytes:
        if size > self._end - self.at:
            whole = self._end == len(self._data)
            raise self.damaged(
                "it ends within its header" if whole else f"its header is longer than {MOST_HEADER} bytes"
            )
        self.at += size
        return self._data[self.at - size : self.at]

    def numbers(self, type: int, count: int) -> list[Any]:
        code = _NUMBERS[type]
        return list(struct.unpack(f"<{count}{code}", self.take(count * struct.calcsize(f"<{code}"))))

    def number(self, type: int) -> Any:
        return self.numbers(type, 1)[0]

    def count(self, what: str, most: int) -> int:
        """Returns a number of things that follow, of which each takes a byte at least."""
        count: int = self.number(10)
        if count > min(most, self._end - self.at):
            raise self.damaged(f"it claims to have {count} {what}")
        return count

    def string(self) -> str:
        data = self.take(self.count("bytes in a text", MOST_STRING))
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise self.damaged(f"the text {shortened(data)} is not UTF-8") from None

    def value(self, type: int, depth: int) -> Any:
        """Returns a number, a text, or a list of these; `depth` lists may lie within each other."""
        if type in _NUMBERS:
            return self.number(type)
        if type == _STRING:
            return self.string()
        if type != _ARRAY or not depth:
            raise self.damaged(f"its metadata has a value of type {type}" if depth else "its lists are nested deeply")
        inner = self.number(4)
        count = self.count("items in a list", self._items)
        self._items -= count
        if inner in _NUMBERS:
            return self.numbers(inner, count)
        return [self.value(inner, depth - 1) for _ in range(count)]

    def entry(self) -> Entry:
        name = self.string()
        count = self.number(4)
        if not 1 <= count <= MOST_DIMENSIONS:
            raise self.damaged(f"the tensor {shortened(name)} has {count} dimensions")
        dimensions = tuple(self.numbers(10, count))
        if not all(1 <= length <= MOST_LENGTH for length in dimensions):
            raise self.damaged(f"the tensor {shortened(name)} has the shape {list(reversed(dimensions))}")
        return Entry(name, dimensions, self.number(4), self.number(10))
