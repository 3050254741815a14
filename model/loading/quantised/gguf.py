"""Reads quantised matrices of a GGUF file, which model/gguf/ gives as blocks.

X.blocks [out, blocks, bytes] uint8    the size of a block tells its type
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

from octavo.model.config_file import ConfigFile, ModelError
from octavo.model.gguf.blocks import BLOCKS, FLOATS, KINDS, Blocks
from octavo.model.gguf.types import TensorType
from octavo.model.loading.quantised.rules import Declared, Rules
from octavo.model.loading.quantised.scheme import Get, Scheme, Spec

BY_BYTES = {each.bytes: each for each in FLOATS}
LOSS = "0.5%"  # of the weights' root mean square: tests/model/gguf/test_blocks.py measures it


@dataclass(frozen=True, slots=True)
class GgufScheme(Scheme):
    """A GgufScheme is a matrix of any of the types."""

    def tensors(self, module: str, shape: tuple[int, ...]) -> dict[str, Spec]:
        out, inputs = shape[-2:]
        fitting = [each for each in BY_BYTES.values() if inputs % each.weights == 0]
        shapes = tuple((out, inputs // each.weights, each.bytes) for each in fitting)
        return {f"{module}{BLOCKS}": Spec(("U8",), shapes)}

    def read(self, get: Get, module: str, shape: tuple[int, int]) -> Blocks:
        data = get(f"{module}{BLOCKS}")
        found = Blocks(BY_BYTES[data.shape[-1]], data)
        if not found.is_finite():
            raise ModelError(f"The tensor {module}.weight holds infinities or NaNs; download the file again.")
        return found

    def describe(self) -> str:
        return "GGUF"


@dataclass(frozen=True, slots=True)
class GgufRules(Rules):
    """GgufRules leave it to the file how a matrix is stored."""

    marks: ClassVar[tuple[str, ...]] = (BLOCKS,)

    notes: tuple[str, ...] = ()

    def declared(self, module: str, names: Collection[str]) -> Declared:
        return Declared(GgufScheme())


def read_rules(fields: ConfigFile) -> GgufRules:
    """Reads quantization_config, which model/gguf/companion.py wrote. Raises ModelError."""
    types = fields.values.get("types")
    if not isinstance(types, list) or not set(map(str, types)) <= TensorType.__members__.keys():
        raise fields.error("types is no list of GGUF's types")
    lossy = [name for name in types if TensorType[name] not in KINDS]
    note = f"Weights in {', '.join(lossy)} are rounded to 8 bits, which changes them by {LOSS} on average."
    return GgufRules((note,) if lossy else ())
