"""Opens GGUF files: their metadata, and where each tensor lies. Tensors themselves are read elsewhere."""

import mmap
import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from reprlib import repr as shortened

from octavo.model.config_file import ModelError
from octavo.model.gguf.header import MAGIC, Entry, Header, Metadata
from octavo.model.gguf.types import BY_NUMBER, OTHERS, TensorType

ALIGNMENT = 32  # bytes, where the metadata has no general.alignment
MOST_ALIGNMENT = 1 << 20
SPLIT_COUNT, SPLIT_NUMBER, SPLIT_TENSORS = "split.count", "split.no", "split.tensors.count"
_SPLIT_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A StoredTensor is where a tensor lies, and as what."""

    name: str
    shape: tuple[int, ...]  # the outermost dimension first
    type: TensorType
    path: Path  # of its file
    offset: int  # bytes from the beginning of the file
    size: int  # bytes


@dataclass(frozen=True, slots=True)
class GgufModel:
    """A GgufModel is what the headers of a model's files say: one file, or all that it is split into."""

    paths: tuple[Path, ...]
    metadata: Metadata  # of the first file, which has it all
    tensors: dict[str, StoredTensor]  # by their names

    @classmethod
    def read(cls, path: Path) -> "GgufModel":
        """Reads a file and, if it is split, the others beside it. Raises ModelError."""
        metadata, tensors = _read(path)
        paths = split_paths(path)
        count = metadata.get(SPLIT_COUNT, 1)
        if count != len(paths):
            raise ModelError(
                f"{path} is a part of {shortened(count)} by its metadata and of {len(paths)} by its name; "
                "give all parts the names that they were published with, such as model-00001-of-00003.gguf."
            )
        if len(paths) > 1:
            metadata, tensors = _joined(paths)
        return cls(paths, metadata, tensors)


def is_gguf(path: Path) -> bool:
    """Returns whether a file has the name or the first letters of a GGUF file. Raises OSError."""
    if path.suffix == ".gguf":
        return True
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def split_paths(path: Path) -> tuple[Path, ...]:
    """Returns the paths of all parts of a model, by the name of one of them; the path alone if it is whole."""
    match = _SPLIT_NAME.fullmatch(path.name)
    if match is None or not 1 <= int(match[2]) <= int(match[3]):
        return (path,)
    return tuple(path.with_name(f"{match[1]}-{n:05}-of-{match[3]}.gguf") for n in range(1, int(match[3]) + 1))


def _joined(paths: tuple[Path, ...]) -> tuple[Metadata, dict[str, StoredTensor]]:
    if absent := next((each for each in paths if not each.is_file()), None):
        raise ModelError(f"{paths[0].parent} lacks {absent.name} of a model in {len(paths)} files; download it.")
    first: Metadata = {}
    tensors: dict[str, StoredTensor] = {}
    for number, path in enumerate(paths):
        metadata, found = _read(path)
        first = first or metadata
        if metadata.get(SPLIT_COUNT) != len(paths) or metadata.get(SPLIT_NUMBER) != number:
            raise ModelError(f"{path} is not part {number + 1} of {len(paths)}; download it again.")
        if twice := sorted(tensors.keys() & found.keys()):
            raise ModelError(f"{path} holds {shortened(twice[0])}, which another part holds, too; download both again.")
        tensors |= found
    if first.get(SPLIT_TENSORS, len(tensors)) != len(tensors):
        raise ModelError(f"The parts of {paths[0]} hold {len(tensors)} tensors, and not all; download them again.")
    return first, tensors


def _read(path: Path) -> tuple[Metadata, dict[str, StoredTensor]]:
    """Returns the metadata and the tensors of one file. Raises ModelError."""
    try:
        with path.open("rb") as file:
            if path.stat().st_size < len(MAGIC):
                raise ModelError(f"{path} is no GGUF file: it is empty.")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                header, size = Header.read(path, data), len(data)
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror}); give the path of a GGUF file.") from None
    alignment = header.metadata.get("general.alignment", ALIGNMENT)
    if type(alignment) is not int or alignment % 8 or not 8 <= alignment <= MOST_ALIGNMENT:
        raise ModelError(f"{path} is damaged: general.alignment is {shortened(alignment)}; download it again.")
    start = -(-header.end // alignment) * alignment
    tensors: dict[str, StoredTensor] = {}
    for entry in header.entries:
        if entry.name in tensors:
            raise ModelError(
                f"{path} is damaged: the tensor {shortened(entry.name)} is there twice; download it again."
            )
        tensors[entry.name] = _stored(path, entry, start)
    _check_places(path, tensors, size, alignment)
    return header.metadata, tensors


def _stored(path: Path, entry: Entry, start: int) -> StoredTensor:
    found = BY_NUMBER.get(entry.type)
    if found is None:
        name = OTHERS.get(entry.type, f"the unknown type {entry.type}")
        raise ModelError(
            f"{path} holds {shortened(entry.name)} in {name}, which is not read here: "
            "use a file in Q4_K_M, Q4_0, Q5_K_M, Q6_K, Q8_0, F16 or BF16."
        )
    if entry.dimensions[0] % found.weights:
        raise ModelError(
            f"{path} is damaged: rows of {shortened(entry.name)} have {entry.dimensions[0]} weights, "
            f"and {found.name} has blocks of {found.weights}; download it again."
        )
    shape = tuple(reversed(entry.dimensions))
    size = prod(shape) // found.weights * found.bytes
    return StoredTensor(entry.name, shape, found, path, start + entry.offset, size)


def _check_places(path: Path, tensors: dict[str, StoredTensor], size: int, alignment: int) -> None:
    """Raises ModelError for tensors that lie beyond the end, upon each other, or where none may begin."""
    for before, each in _neighbours(tensors):
        if each.offset + each.size > size:
            raise ModelError(
                f"{path} is cut short: {shortened(each.name)} ends at byte {each.offset + each.size}, "
                f"and the file has {size} bytes; download it again."
            )
        if each.offset % alignment:
            raise ModelError(f"{path} is damaged: {shortened(each.name)} begins at an odd place; download it again.")
        if before is not None and before.offset + before.size > each.offset:
            raise ModelError(
                f"{path} is damaged: {shortened(before.name)} and {shortened(each.name)} overlap; download it again."
            )


def _neighbours(tensors: dict[str, StoredTensor]) -> Iterator[tuple[StoredTensor | None, StoredTensor]]:
    """Yields each tensor after the one that lies before it."""
    before = None
    for each in sorted(tensors.values(), key=lambda tensor: tensor.offset):
        yield before, each
        before = each
