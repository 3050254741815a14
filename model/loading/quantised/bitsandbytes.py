"""Reads bitsandbytes: NF4 and FP4 (https://arxiv.org/abs/2305.14314), which are decoded, and int8.

weight [n / 2, 1] uint8             4 bits: a byte has two weights, the first one in its high half, row by row
weight.absmax [blocks]              float32: the factor of each block of consecutive weights; uint8 if it is nested
weight.quant_map [16] float32       what the codes mean, times the factor
weight.nested_absmax, weight.nested_quant_map [256]     factor = map[absmax] * nested_absmax + nested_offset
weight.quant_state.bitsandbytes__nf4 [any] uint8        JSON: shape, blocksize, nested_blocksize, nested_offset
weight [out, in] int8, SCB [out]    8 bits: weight * SCB / 127
"""

import json
import math
from collections.abc import Collection
from dataclasses import dataclass
from reprlib import repr as shortened
from typing import Any, ClassVar

import torch
from torch import Tensor

from octavo.model.config_file import ConfigFile, ModelError
from octavo.model.loading.quantised.checks import checked_scales
from octavo.model.loading.quantised.exclusions import Exclusions
from octavo.model.loading.quantised.packed import high_half_first, pieces
from octavo.model.loading.quantised.rules import Declared, Rules, declared_unless
from octavo.model.loading.quantised.scheme import Get, Scheme, Spec, found
from octavo.model.loading.quantised.stored import Affine, Dense

TYPES = ("nf4", "fp4")
STORAGE = ("U8", "I8", "F16", "BF16", "F32")  # types in which the bytes may lie
MOST_BLOCK = 1 << 16  # weights that share a factor; bitsandbytes itself has 4096 at most
PER_SCB = 7.874015718698502e-3  # 1 / 127, as bitsandbytes has it
INSTEAD = "take the checkpoint in nf4, fp4 or int8"


@dataclass(frozen=True, slots=True)
class FourBits(Scheme):
    """A FourBits is a matrix in NF4 or FP4."""

    type: str
    nested: bool

    def tensors(self, module: str, shape: tuple[int, ...]) -> dict[str, Spec]:
        if len(shape) != 2:
            raise ModelError(f"{module} holds all experts in 4 bits of bitsandbytes, which is not known; {INSTEAD}.")
        weight = f"{module}.weight"
        specs = {
            weight: Spec(STORAGE, ((None, 1), (None,))),
            f"{weight}.absmax": Spec(("U8",) if self.nested else ("F32",), ((None,),)),
            f"{weight}.quant_map": Spec(("F32",), ((16,),)),
            f"{weight}.quant_state.bitsandbytes__{self.type}": Spec(("U8",), ((None,),)),
        }
        if self.nested:
            specs[f"{weight}.nested_absmax"] = Spec(("F32",), ((None,),))
            specs[f"{weight}.nested_quant_map"] = Spec(("F32",), ((256,),))
        return specs

    def read(self, get: Get, module: str, shape: tuple[int, int]) -> Dense:
        weight = f"{module}.weight"
        state = _State.read(get(f"{weight}.quant_state.bitsandbytes__{self.type}"), weight, self.nested)
        count = math.prod(shape)
        factors = self._factors(get, weight, state)
        packed = get(weight).flatten().view(torch.uint8)
        if state.shape != shape or 2 * len(packed) != count or len(factors) != -(-count // state.block):
            raise ModelError(
                f"{weight} is not a matrix of {list(shape)} in blocks of {state.block}; download it again."
            )
        meaning = get(f"{weight}.quant_map")
        values = torch.empty(count, dtype=torch.float32)
        for chosen in pieces(len(factors), state.block):
            first, last = chosen.start * state.block, min(chosen.stop * state.block, count)
            codes = high_half_first(packed[first // 2 : last // 2])
            of_each = factors[chosen].repeat_interleave(state.block)[: last - first]
            values[first:last] = meaning[codes.long()] * of_each
        return Dense(values.view(shape))

    def describe(self) -> str:
        return f"bitsandbytes {self.type}"

    def _factors(self, get: Get, weight: str, state: "_State") -> Tensor:
        """Returns what multiplies the values of each block, [blocks] float32."""
        stored = get(f"{weight}.absmax")
        if not self.nested:
            return checked_scales(stored, f"{weight}.absmax")
        of_each = get(f"{weight}.nested_absmax").repeat_interleave(state.nested_block)[: len(stored)]
        if len(of_each) != len(stored):
            raise ModelError(f"{weight}.nested_absmax is too short; download the checkpoint again.")
        factors = get(f"{weight}.nested_quant_map")[stored.long()] * of_each + state.offset
        return checked_scales(factors, f"{weight}.absmax")


@dataclass(frozen=True, slots=True)
class EightBits(Scheme):
    """An EightBits is a matrix in int8, with a scale for each output."""

    def tensors(self, module: str, shape: tuple[int, ...]) -> dict[str, Spec]:
        if len(shape) != 2:
            raise ModelError(f"{module} holds all experts in int8 of bitsandbytes, which is not known; {INSTEAD}.")
        return {
            f"{module}.weight": Spec(("I8",), (shape,)),
            f"{module}.SCB": Spec(("F32",), ((shape[0],),)),
            f"{module}.weight_format": Spec(("U8",), ((), (1,)), optional=True),
        }

    def read(self, get: Get, module: str, shape: tuple[int, int]) -> Affine:
        layout = found(get, f"{module}.weight_format")
        if layout is not None and layout.item() != 0:
            raise ModelError(f"{module}.weight_format is not 0, and only rows are known; {INSTEAD} of today's version.")
        scales = checked_scales(get(f"{module}.SCB") * PER_SCB, f"{module}.SCB")
        return Affine(get(f"{module}.weight").view(torch.uint8) + 128, 8, 0, scales[:, None])

    def describe(self) -> str:
        return "bitsandbytes int8"


@dataclass(frozen=True, slots=True)
class _State:
    """A _State is what the JSON beside a matrix says."""

    shape: tuple[int, ...]
    block: int
    nested_block: int
    offset: float

    @classmethod
    def read(cls, stored: Tensor, weight: str, nested: bool) -> "_State":
        """Raises ModelError for what is no such JSON."""
        try:
            values: dict[str, Any] = json.loads(bytes(stored.tolist()).decode())
            state = cls(
                tuple(values["shape"]),
                int(values["blocksize"]),
                int(values["nested_blocksize"]) if nested else 1,
                float(values["nested_offset"]) if nested else 0.0,
            )
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            raise ModelError(f"{weight}.quant_state is not what bitsandbytes writes; download it again.") from None
        state._check(weight)
        return state

    def _check(self, weight: str) -> None:
        """Raises ModelError for numbers that cannot be; a block's factor is repeated for each of its weights."""
        if not 2 <= self.block <= MOST_BLOCK or self.block % 2 or not 1 <= self.nested_block <= MOST_BLOCK:
            sizes = f"blocks of {shortened(self.block)}, nested ones of {shortened(self.nested_block)}"
            raise ModelError(f"{weight}.quant_state speaks of {sizes}; download the checkpoint again.")
        if not math.isfinite(self.offset):
            raise ModelError(f"{weight}.quant_state has {self.offset} as nested_offset; download the checkpoint again.")


@dataclass(frozen=True, slots=True)
class BitsAndBytesRules(Rules):
    """BitsAndBytesRules are one scheme, and the modules that are left as they were."""

    marks: ClassVar[tuple[str, ...]] = (".weight.absmax", ".SCB")

    type: str | None  # None: int8
    excluded: Exclusions
    notes: tuple[str, ...]

    @property
    def expressions(self) -> tuple[str, ...]:
        return self.excluded.expressions

    @property
    def is_exact(self) -> bool:
        return self.type is None

    def declared(self, module: str, names: Collection[str]) -> Declared:
        nested = f"{module}.weight.nested_absmax" in names
        scheme = EightBits() if self.type is None else FourBits(self.type, nested)
        return declared_unless(self.excluded, module, scheme)


def read_rules(fields: ConfigFile) -> BitsAndBytesRules:
    """Reads quantization_config. Raises ModelError."""
    four = fields.flag("load_in_4bit") or fields.flag("_load_in_4bit")
    eight = fields.flag("load_in_8bit") or fields.flag("_load_in_8bit")
    if four == eight:
        raise fields.error("load_in_4bit and load_in_8bit are both set or both missing, and one of them must be true")
    kind = fields.values.get("bnb_4bit_quant_type", "fp4") if four else None
    if four and kind not in TYPES:
        raise fields.error(f"bnb_4bit_quant_type is {shortened(kind)}, neither 'nf4' nor 'fp4'; {INSTEAD}")
    notes = ("The weights in 4 bits of bitsandbytes are decoded and quantised again.",) if four else ()
    return BitsAndBytesRules(kind, Exclusions.read(fields, "llm_int8_skip_modules"), notes)
