"""Reads AWQ (https://arxiv.org/abs/2306.00978) in 4 bits, as AutoAWQ writes it for its "gemm" kernels.

qweight [in, out / 8]      a word of 32 bits has eight consecutive outputs, in the order 0 2 4 6 1 3 5 7
qzeros [groups, out / 8]   the same
scales [groups, out]
"""

from collections.abc import Collection
from dataclasses import dataclass
from reprlib import repr as shortened
from typing import ClassVar

import torch
from torch import Tensor

from octavo.model.config_file import ConfigFile
from octavo.model.loading.quantised.checks import checked_scales, group_size, unless_even
from octavo.model.loading.quantised.exclusions import Exclusions
from octavo.model.loading.quantised.packed import pieces
from octavo.model.loading.quantised.rules import Declared, Rules, declared_unless
from octavo.model.loading.quantised.scheme import FLOATS, Get, Scheme, Spec, found, groups, stacked, whole_words
from octavo.model.loading.quantised.stored import Affine

BITS, PER_WORD = 4, 8
PLACES = (0, 4, 1, 5, 2, 6, 3, 7)  # where in its word each of eight outputs lies: the inverse of 0 2 4 6 1 3 5 7
INSTEAD = 'take the checkpoint in AWQ of version "gemm"'


@dataclass(frozen=True, slots=True)
class Awq(Scheme):
    """An Awq is a matrix of an AWQ checkpoint."""

    group: int  # 0: a channel
    zero_point: bool

    def tensors(self, module: str, shape: tuple[int, ...]) -> dict[str, Spec]:
        out, inputs = shape[-2:]
        right, count = whole_words(module, out, PER_WORD, "outputs"), groups(inputs, self.group)
        return {
            f"{module}.qweight": Spec(("I32",), (stacked(shape, inputs, right),)),
            f"{module}.qzeros": Spec(("I32",), (stacked(shape, count, right),), optional=not self.zero_point),
            f"{module}.scales": Spec(FLOATS, (stacked(shape, count, out),)),
        }

    def read(self, get: Get, module: str, shape: tuple[int, int]) -> Affine:
        words = found(get, f"{module}.qzeros")  # A symmetric matrix may have them, too.
        return Affine(
            codes=_unpacked(get(f"{module}.qweight")),
            bits=BITS,
            group=self.group,
            scales=checked_scales(get(f"{module}.scales").T, f"{module}.scales"),
            zeros=None if words is None else unless_even(_unpacked(words), BITS),
        )

    def describe(self) -> str:
        spread = f"in groups of {self.group}" if self.group else "with a scale for each output"
        return f"AWQ, {BITS} bits {spread}"


@dataclass(frozen=True, slots=True)
class AwqRules(Rules):
    """AwqRules are one scheme, and the modules that are left as they were."""

    marks: ClassVar[tuple[str, ...]] = (".qweight",)

    scheme: Awq
    excluded: Exclusions
    notes: tuple[str, ...] = ()

    @property
    def expressions(self) -> tuple[str, ...]:
        return self.excluded.expressions

    def declared(self, module: str, names: Collection[str]) -> Declared:
        return declared_unless(self.excluded, module, self.scheme)


def read_rules(fields: ConfigFile) -> AwqRules:
    """Reads quantization_config or quant_config.json. Raises ModelError."""
    version = fields.values.get("version") or fields.values.get("format") or "gemm"
    if str(version).lower() != "gemm":
        raise fields.error(f"version is {shortened(version)}, and only 'gemm' is known; {INSTEAD}")
    bits = fields.integer("bits", "w_bit")
    if bits != BITS:
        raise fields.error(f"bits is {bits}, and AWQ has only 4 here; {INSTEAD} with 4 bits")
    zero_point = fields.flag("zero_point") if fields.values.get("zero_point") is not None else True
    scheme = Awq(group_size(fields, "group_size", "q_group_size"), zero_point)
    return AwqRules(scheme, Exclusions.read(fields, "modules_to_not_convert"))


def _unpacked(words: Tensor) -> Tensor:
    """Unpacks [n, out / 8] int32, and transposes: [out, n] uint8."""
    count, right = words.shape
    codes = torch.empty((right, PER_WORD, count), dtype=torch.uint8)
    for chosen in pieces(right, count * words.itemsize * PER_WORD):
        part = words[:, chosen].T.contiguous()  # whole words are moved: there are eight times as many codes
        for output, place in enumerate(PLACES):
            codes[chosen, output] = part >> BITS * place & 15
    return codes.flatten(0, 1)
