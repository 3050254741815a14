"""Knows which files hold a checkpoint's weights, and tells whether they are the ones that a tile file was made from."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from octavo.model.config_file import ConfigFile, ModelError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
GGUF, GGUF_PARTS = "model.gguf", "model-{:05}-of-{:05}.gguf"  # links to such files, in a directory made for them
MOST_HEADER = 100 << 20  # bytes; safetensors itself takes no longer header
# Fields of config.json, the older one last, and files beside it: they say how a checkpoint's weights are quantised.
DESCRIPTIONS = ("quantization_config", "compression_config")
DESCRIPTION_FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq"}  # the method that each implies
CHUNK = 4 << 20  # bytes hashed at once

Hashed = Callable[[int], None]  # is called with the number of bytes that were hashed since the last call


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A SourceFile says what a file of weights is, without its contents."""

    name: str
    size: int  # bytes
    modified: int  # nanoseconds since 1970
    header: str  # SHA-256 of the header, which has names, types and places of all tensors; of GGUF, of 100 MiB with it
    contents: str | None = None  # SHA-256 of the whole file; None: nobody has read it all

    @classmethod
    def of(cls, path: Path) -> Self:
        """Raises OSError."""
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = hashlib.sha256(file.read(min(size, MOST_HEADER))).hexdigest()
        status = path.stat()
        return cls(path.name, status.st_size, status.st_mtime_ns, header)

    def change(self, now: "SourceFile", times: bool) -> str | None:
        """Returns a clause about what is different now; None where nothing is. `times` counts them, too."""
        if now.size != self.size:
            return f"{self.name} has another size"
        if now.header != self.header:
            return f"{self.name} holds other tensors"
        if times and now.modified != self.modified:
            return f"{self.name} was written at another time (--verify compares contents instead)"
        return None


@dataclass(frozen=True, slots=True)
class Source:
    """A Source is the files with a checkpoint's weights."""

    directory: str  # absolute
    files: tuple[SourceFile, ...]
    described: str = ""  # SHA-256 of what is said of how the weights are quantised; empty: nothing is

    @classmethod
    def of(cls, directory: Path) -> "Source | None":
        """Returns None where the weights are not all there."""
        try:
            files = tuple(SourceFile.of(directory / name) for name in _names(directory))
            return cls(str(directory.absolute()), files, _described(directory))
        except (OSError, ModelError):
            return None

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Raises TypeError or KeyError for what `to_json` did not return."""
        files = tuple(SourceFile(**each) for each in values["files"])
        return cls(values["directory"], files, values.get("described", ""))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def size(self) -> int:
        """Returns the bytes of all files."""
        return sum(file.size for file in self.files)

    def change(self, now: "Source", times: bool = True) -> str | None:
        """Returns a clause about what is different now; None where nothing is."""
        if [file.name for file in self.files] != [file.name for file in now.files]:
            return "its files have other names"
        if self.described != now.described:
            return "its weights are said to be quantised in another way"
        pairs = zip(self.files, now.files, strict=True)
        return next((change for old, new in pairs if (change := old.change(new, times))), None)

    def with_contents(self, hashed: Hashed = lambda count: None) -> Self:
        """Reads and hashes all files. Raises OSError."""
        directory = Path(self.directory)
        files = (replace(file, contents=hash_of(directory / file.name, hashed)) for file in self.files)
        return replace(self, files=tuple(files))

    def other_contents(self, now: "Source", hashed: Hashed = lambda count: None) -> str | None:
        """Reads the files of `now`; returns a clause about one with other contents. Raises OSError."""
        for old, new in zip(self.files, now.with_contents(hashed).files, strict=True):
            if old.contents != new.contents:
                return f"{old.name} has other contents"
        return None


def _described(directory: Path) -> str:
    """Returns a hash of the JSON that gives a quantised checkpoint's integers their meaning; empty: there is none."""
    config = ConfigFile.read_if_there(directory / "config.json")
    found = {field: config.values[field] for field in DESCRIPTIONS if config is not None and config.values.get(field)}
    for name in DESCRIPTION_FILES:
        if (file := ConfigFile.read_if_there(directory / name)) is not None:
            found[name] = file.values
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest() if found else ""


def weight_map(index: Path) -> dict[str, str]:
    """Returns the name of the file that holds each tensor. Raises ModelError unless all lie beside the index."""
    found = ConfigFile.read(index).values.get("weight_map")
    if not isinstance(found, dict) or not found:
        raise ModelError(f"{index} has no weight_map, which names the file of each tensor; download it again.")
    if any(type(name) is not str or Path(name).name != name for name in found.values()):
        raise ModelError(f"{index} must name files beside it; download it again.")
    return found


def gguf_name(number: int, count: int) -> str:
    """Returns the name of a part of a model in GGUF; the first part is 1."""
    return GGUF if count == 1 else GGUF_PARTS.format(number, count)


def gguf_names(directory: Path) -> list[str]:
    """Returns the names of the GGUF files that a directory was made for, from the first part on; none elsewhere."""
    return sorted(path.name for pattern in (GGUF, "model-*-of-*.gguf") for path in directory.glob(pattern))


def hash_of(path: Path, hashed: Hashed = lambda count: None) -> str:
    """Returns the SHA-256 of a file, in hex. Raises OSError."""
    digest, buffer = hashlib.sha256(), bytearray(CHUNK)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(memoryview(buffer)[:count])
            hashed(count)
    return digest.hexdigest()


def _names(directory: Path) -> list[str]:
    index = directory / INDEX
    return sorted(set(weight_map(index).values())) if index.exists() else gguf_names(directory) or [SINGLE]
