"""Reads GPTQ (https://arxiv.org/abs/2210.17323), as AutoGPTQ and GPTQModel write it, in 4 and 8 bits.

    qweight [in / per word, out]      a word of 32 bits has consecutive inputs, the first one in its lowest bits
    qzeros [groups, out / per word]   a word has consecutive outputs
    scales [groups, out]
    g_idx [in]                        the group of each input

Version 1 stores each zero less one: it is added to the whole word, and a carry goes on into the next zero, because
GPTQModel subtracts it from the whole word. Version 2 stores zeros as they are.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from reprlib import repr as shortened
from typing import Any, ClassVar

from torch import Tensor

from octavo.model.config_file import ConfigFile, ModelError
from octavo.model.loading.quantised.checks import checked_scales, group_order, group_size, unless_even
from octavo.model.loading.quantised.exclusions import check_regex
from octavo.model.loading.quantised.packed import unpacked_down, unpacked_right
from octavo.model.loading.quantised.rules import Declared, Rules
from octavo.model.loading.quantised.scheme import FLOATS, Get, Scheme, Spec, found, groups, stacked, whole_words
from octavo.model.loading.quantised.stored import Affine

VERSIONS = {"gptq": 1, "gptq_v2": 2}
ADDED = {4: 0x11111111, 8: 0x01010101}  # one for each zero of a word
HEAD = "lm_head"
INSTEAD = "take the checkpoint in GPTQ with 4 or 8 bits"


@dataclass(frozen=True, slots=True)
class Gptq(Scheme):
    """A Gptq is a matrix of a GPTQ checkpoint."""

    bits: int
    group: int  # 0: a channel
    version: int
    act_order: bool
    symmetric: bool | None  # None: the config does not say

    def tensors(self, module: str, shape: tuple[int, ...]) -> dict[str, Spec]:
        out, inputs = shape[-2:]
        per_word = 32 // self.bits
        down = whole_words(module, inputs, per_word, "inputs")
        right = whole_words(module, out, per_word, "outputs")
        count = groups(inputs, self.group)
        return {
            f"{module}.qweight": Spec(("I32",), (stacked(shape, down, out),)),
            f"{module}.qzeros": Spec(("I32",), (stacked(shape, count, right),)),
            f"{module}.scales": Spec(FLOATS, (stacked(shape, count, out),)),
            f"{module}.g_idx": Spec(("I32", "I64"), (stacked(shape, inputs),), optional=not self.act_order),
            f"{module}.bias": Spec(FLOATS, (stacked(shape, out),), optional=True, zeros=True),
        }

    def read(self, get: Get, module: str, shape: tuple[int, int]) -> Affine:
        order = self._order(get, module)
        words = get(f"{module}.qzeros")
        if self.version == 1:
            words = (words.long() + ADDED[self.bits]).int()  # The conversion wraps around, as 32 bits do.
        zeros = unpacked_right(words, self.bits).T
        codes = unpacked_down(get(f"{module}.qweight"), self.bits, order)
        even = unless_even(zeros, self.bits)
        if self.symmetric and even is not None:
            raise ModelError(f"{module}.qzeros are not all the middle, though sym is true; download both again.")
        return Affine(
            codes=codes,
            bits=self.bits,
            group=self.group,
            scales=checked_scales(get(f"{module}.scales").T, f"{module}.scales"),
            zeros=even,
            order=None if order is None else order.int(),
        )

    def describe(self) -> str:
        spread = f"in groups of {self.group}" if self.group else "with a scale for each output"
        return f"GPTQ, {self.bits} bits {spread}{', act order' if self.act_order else ''}"

    def _order(self, get: Get, module: str) -> Tensor | None:
        """Returns the inputs by their groups, [in] int64; None if they come so. Raises ModelError for broken groups."""
        name = f"{module}.g_idx"
        index = found(get, name) if self.group else None
        order = None if index is None else group_order(index, self.group, name)
        if order is not None and not self.act_order:
            raise ModelError(f"{name} is out of order, though desc_act is false; download both files again.")
        return order


@dataclass(frozen=True, slots=True)
class GptqRules(Rules):
    """GptqRules are the scheme of most modules, and those of the modules that `dynamic` names."""

    marks: ClassVar[tuple[str, ...]] = (".qweight",)

    scheme: Gptq
    dynamic: tuple[tuple[str, Gptq | None], ...]  # the first regular expression that matches from the start counts
    head: bool
    notes: tuple[str, ...] = ()

    @property
    def expressions(self) -> tuple[str, ...]:
        return tuple(pattern for pattern, _ in self.dynamic)

    def declared(self, module: str, names: Collection[str]) -> Declared:
        for pattern, scheme in self.dynamic:
            if re.match(pattern, module):
                return Declared(scheme, certain=scheme is None, reason="dynamic says that")
        if module == HEAD:
            return Declared(self.scheme if self.head else None, certain=True, reason="lm_head says that")
        return Declared(self.scheme)


def read_rules(fields: ConfigFile) -> GptqRules:
    """Reads quantization_config or quantize_config.json. Raises ModelError."""
    if fields.flag("is_marlin_format"):
        raise fields.error(f"the weights are packed for marlin (is_marlin_format); {INSTEAD} as GPTQ packs it")
    version = fields.values.get("checkpoint_format") or fields.values.get("format") or "gptq"
    if version not in tuple(VERSIONS):
        raise fields.error(
            f"checkpoint_format is {shortened(version)}, and only 'gptq' and 'gptq_v2' are known; {INSTEAD}"
        )
    if fields.values.get("pack_dtype") not in (None, "int32", "torch.int32"):
        raise fields.error(f"pack_dtype is {shortened(fields.values['pack_dtype'])}, not 'int32'; {INSTEAD}")
    return GptqRules(_scheme(fields, VERSIONS[version]), _dynamic(fields, VERSIONS[version]), fields.flag("lm_head"))


def _scheme(fields: ConfigFile, version: int) -> Gptq:
    bits = fields.integer("bits", "w_bit")
    if bits not in ADDED:
        raise fields.error(f"bits is {bits}, and only 4 and 8 are known; {INSTEAD}")
    return Gptq(
        bits=bits,
        group=group_size(fields, "group_size"),
        version=version,
        act_order=fields.flag("desc_act"),
        symmetric=fields.flag("sym") if fields.values.get("sym") is not None else None,
    )


def _dynamic(fields: ConfigFile, version: int) -> tuple[tuple[str, Gptq | None], ...]:
    """Reads the exceptions: "-:" before a regular expression leaves modules as they are, "+:" changes their scheme."""
    dynamic: Any = fields.values.get("dynamic") or {}
    if not isinstance(dynamic, dict) or not all(isinstance(each, dict) for each in dynamic.values()):
        raise fields.error(f"dynamic is {shortened(dynamic)}, not an object of objects")
    found: list[tuple[str, Gptq | None]] = []
    for key, changes in dynamic.items():
        pattern = key.removeprefix("-:").removeprefix("+:")
        check_regex(fields, "dynamic", pattern)
        changed = ConfigFile(fields.path, fields.values | changes)
        found.append((pattern, None if key.startswith("-:") else _scheme(changed, version)))
    return tuple(found)
