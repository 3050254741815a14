"""Reads MXFP4 as gpt-oss has it for its experts, all in one tensor.

    X_blocks [E, out, in / 32, 16] uint8    a byte has two inputs, the first one in its low half
    X_scales [E, out, in / 32] uint8        powers of two: 2**(scale - 127)

A code is a float of 4 bits (E2M1), and twice its value is a whole number. The OCP defines these formats:
https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

import torch

from octavo.model.config_file import ConfigFile, ModelError
from octavo.model.loading.quantised.exclusions import Exclusions
from octavo.model.loading.quantised.packed import low_half_first
from octavo.model.loading.quantised.rules import Declared, Rules, declared_unless
from octavo.model.loading.quantised.scheme import Get, Scheme, Spec, stacked
from octavo.model.loading.quantised.stored import Table

GROUP = 32
VALUES = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)  # twice those of the codes
FACTOR = 0.5
MOST_SCALE = 127 + 90  # Sums over larger weights could be infinite; 255 is a NaN.


@dataclass(frozen=True, slots=True)
class Mxfp4(Scheme):
    """An Mxfp4 is one projection of all experts."""

    def tensors(self, module: str, shape: tuple[int, ...]) -> dict[str, Spec]:
        out, inputs = shape[-2:]
        if inputs % GROUP:
            raise ModelError(f"{module} has {inputs} inputs, and MXFP4 has blocks of {GROUP}; use its own config.json.")
        return {
            f"{module}_blocks": Spec(("U8",), (stacked(shape, out, inputs // GROUP, GROUP // 2),)),
            f"{module}_scales": Spec(("U8", "F8_E8M0"), (stacked(shape, out, inputs // GROUP),)),
        }

    def read(self, get: Get, module: str, shape: tuple[int, int]) -> Table:
        blocks = get(f"{module}_blocks").flatten(1)  # [out, in / 2]
        scales = get(f"{module}_scales").view(torch.uint8)
        if bool((scales > MOST_SCALE).any()):
            raise ModelError(
                f"The scales {module}_scales hold NaNs or numbers beyond 2**90; download the checkpoint again."
            )
        return Table(low_half_first(blocks), GROUP, scales, VALUES, FACTOR)

    def describe(self) -> str:
        return "MXFP4"


@dataclass(frozen=True, slots=True)
class Mxfp4Rules(Rules):
    """Mxfp4Rules are one scheme, and the modules that are left as they were."""

    marks: ClassVar[tuple[str, ...]] = ("_blocks",)

    excluded: Exclusions
    notes: tuple[str, ...] = ()

    @property
    def expressions(self) -> tuple[str, ...]:
        return self.excluded.expressions

    def declared(self, module: str, names: Collection[str]) -> Declared:
        return declared_unless(self.excluded, module, Mxfp4())


def read_rules(fields: ConfigFile) -> Mxfp4Rules:
    """Reads quantization_config. Raises ModelError."""
    return Mxfp4Rules(Exclusions.read(fields, "modules_to_not_convert"))
