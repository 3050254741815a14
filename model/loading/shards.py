"""Reads the tensors of a safetensors checkpoint through mmap, and says what is wrong with the files."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from octavo.model.config_file import ModelError
from octavo.model.gguf.handle import GgufHandle
from octavo.model.loading.names import DERIVED, TensorSlice
from octavo.model.loading.quantised.scheme import Spec
from octavo.model.prepared.source import INDEX, SINGLE, gguf_names, weight_map

PICKLES = ("*.bin", "*.pt", "*.pth")
ITEM_SIZES = {  # bytes
    **dict.fromkeys(("F64", "I64", "U64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("BF16", "F16", "I16", "U16"), 2),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "I8", "U8", "BOOL"), 1),
}
NAMED = 5  # tensors that one message lists


@dataclass(frozen=True, slots=True)
class Shards:
    """Shards are the open files of one checkpoint; nothing is read from them until a tensor is."""

    directory: Path
    files: Mapping[str, Any]  # tensor name -> the open file that holds it

    @classmethod
    def open(cls, directory: Path, stack: ExitStack) -> "Shards":
        """Opens the files until the stack closes. Raises ModelError for a missing or damaged one.

        The index says which file holds a tensor. What else is in the files, such as an older copy, counts for nothing.
        """
        index = directory / INDEX
        if index.exists() or index.is_symlink():
            return cls(directory, _indexed(directory, weight_map(index), stack))
        if names := gguf_names(directory):
            gguf = GgufHandle.open(directory / names[0])
            return cls(directory, dict.fromkeys(gguf.keys(), gguf))
        if not (directory / SINGLE).is_file():
            raise _nothing_to_load(directory)
        handle = stack.enter_context(_open(directory / SINGLE))
        return cls(directory, {name: handle for name in handle.keys() if not name.endswith(DERIVED)})  # noqa: SIM118

    def check(self, expected: Mapping[str, Spec], passed_over: frozenset[str] = frozenset()) -> None:
        """Compares names, shapes and dtypes, from the headers alone. Raises ModelError that names what differs."""
        wanted = {name for name, spec in expected.items() if not spec.optional}
        found = {name: spec for name, spec in expected.items() if name in self.files}
        problems = [
            *_listed("missing", sorted(wanted - self.files.keys())),
            *_listed("unexpected", sorted(self.files.keys() - expected.keys() - passed_over)),
            *_listed("of another shape than config.json says", self._misshapen(found)),
            *_listed("of a type that they cannot have", self._mistyped(found)),
        ]
        if problems:
            raise ModelError(
                f"The tensors in {self.directory} do not fit its config.json: {'; '.join(problems)}. "
                "Use the config.json that belongs to these weights, or download both again."
            )

    def stored_bytes(self, name: str) -> int:
        """Raises ModelError for a type whose size is not known."""
        dtype = self._header(name).get_dtype()
        size = ITEM_SIZES.get(dtype)
        if size is None:
            raise ModelError(
                f"The tensor {name} in {self.directory} is of the type {dtype}, which is unknown; take the checkpoint "
                "in another format."
            )
        for length in self._header(name).get_shape():
            size *= length
        return size

    def read(self, source: TensorSlice) -> Tensor:
        """Returns a view of the file, which must be copied before the files close."""
        tensor = self.files[source.name].get_tensor(source.name)
        if source.expert is not None:
            tensor = tensor[source.expert]
        if source.transposed:
            tensor = tensor.T
        if source.every is None:
            return tensor
        first, step = source.every
        return tensor[..., first::step] if source.expert is None else tensor[first::step]

    def _header(self, name: str) -> Any:
        return self.files[name].get_slice(name)

    def _misshapen(self, expected: Mapping[str, Spec]) -> list[str]:
        shapes = {name: tuple(self._header(name).get_shape()) for name in sorted(expected)}
        return [
            f"{name} ({list(shape)}, expected {expected[name].shapes_in_words()})"
            for name, shape in shapes.items()
            if not expected[name].allows_shape(shape)
        ]

    def _mistyped(self, expected: Mapping[str, Spec]) -> list[str]:
        dtypes = {name: self._header(name).get_dtype() for name in sorted(expected)}
        return [
            f"{name} ({dtype}, expected {' or '.join(expected[name].dtypes)})"
            for name, dtype in dtypes.items()
            if dtype not in expected[name].dtypes
        ]


def _listed(what: str, names: list[str]) -> list[str]:
    if not names:
        return []
    rest = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return [f"{len(names)} {what}: {', '.join(names[:NAMED])}{rest}"]


def _indexed(directory: Path, weight_map: Mapping[str, str], stack: ExitStack) -> dict[str, Any]:
    """Opens the files of an index; returns the one that holds each tensor. Raises ModelError for what is missing."""
    names = sorted(set(weight_map.values()))
    absent = [name for name in names if not (directory / name).is_file()]
    if absent:
        raise ModelError(f"Cannot load {directory}: {'; '.join(_listed('missing files', absent))}; download them.")
    handles = {name: stack.enter_context(_open(directory / name)) for name in names}
    stored = {name: set(handle.keys()) for name, handle in handles.items()}
    lost = [f"{tensor} ({name})" for tensor, name in sorted(weight_map.items()) if tensor not in stored[name]]
    if lost:
        raise ModelError(
            f"Cannot load {directory}: {'; '.join(_listed('missing in the file that the index names', lost))}; "
            "download these files and the index again."
        )
    return {tensor: handles[name] for tensor, name in weight_map.items() if not tensor.endswith(DERIVED)}


def _nothing_to_load(directory: Path) -> ModelError:
    if any(True for pattern in PICKLES for _ in directory.glob(pattern)):
        return ModelError(
            f"{directory} holds its weights as pickles (*.bin, *.pt), which can run code when they are read: "
            "only safetensors is ever loaded. Convert it with transformers' save_pretrained."
        )
    if any(directory.glob("*.safetensors")):
        return ModelError(
            f"{directory} has neither {SINGLE} nor {INDEX}, which says what its shards hold; download it."
        )
    return ModelError(f"{directory} has no weights: neither {SINGLE} nor {INDEX} is there; download the checkpoint.")


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is damaged or incomplete ({error}); download it again.") from None
