"""Reads weights in float8_e4m3fn with a scale for a tensor, an output or a block; the scales multiply.

    weight [out, in]
    weight_scale, weight_scale_inv    [] or [1], [out] or [out, 1], or [out / rows, in / columns] of a block

Several tools write them: AutoFP8, vLLM, transformers and DeepSeek; Meta's fbgemm_fp8 has the same tensors. The second
name is that of a block's scale, and transformers has it for a tensor, too. It is no inverse.
"""

from collections.abc import Collection
from dataclasses import dataclass
from reprlib import repr as shortened
from typing import ClassVar

import torch
from torch import Tensor

from octavo.model.config_file import ConfigFile, ModelError
from octavo.model.loading.quantised.checks import MOST_GROUP, checked_scales
from octavo.model.loading.quantised.exclusions import Exclusions
from octavo.model.loading.quantised.rules import Declared, Rules, declared_unless
from octavo.model.loading.quantised.scheme import FLOATS, Get, Scheme, Spec, found, groups, stacked, weight_name
from octavo.model.loading.quantised.stored import Floats
from octavo.model.weights.kinds import GROUP

SCALE, SCALE_OF_BLOCK = "weight_scale", "weight_scale_inv"
NAN = 0x7F  # the code of a NaN, without its sign
INSTEAD = "take the checkpoint in float8_e4m3fn"


@dataclass(frozen=True, slots=True)
class Fp8(Scheme):
    """An Fp8 is a matrix in float8_e4m3fn."""

    block: tuple[int, int] | None  # (outputs, inputs) that share a scale; None: a tensor's or an output's
    scale: str = SCALE

    def tensors(self, module: str, shape: tuple[int, ...]) -> dict[str, Spec]:
        out, inputs = shape[-2:]
        if self.block is None:
            shapes = tuple(stacked(shape, *sizes) for sizes in ((), (1,), (1, 1), (out,), (out, 1)))
        else:
            shapes = (stacked(shape, groups(out, self.block[0]), groups(inputs, self.block[1])),)
        return {
            weight_name(module, shape): Spec(("F8_E4M3",), (shape,)),
            self._scale_name(module, shape): Spec((*FLOATS, "F8_E8M0"), shapes),
            # Some files of compressed-tensors have the zeros of what is symmetric.
            f"{module}.weight_zero_point": Spec((*FLOATS, "F8_E4M3", "I8"), shapes, optional=True, zeros=True),
        }

    def read(self, get: Get, module: str, shape: tuple[int, int]) -> Floats:
        alone = found(get, f"{module}.weight")
        name = self._scale_name(module, shape if alone is not None else (1, *shape))
        values = get(module) if alone is None else alone
        if bool((values.view(torch.uint8) & NAN == NAN).any()):
            raise ModelError(f"The weights of {module} hold NaNs; download the checkpoint again.")
        scales = checked_scales(get(name).float(), name)
        if self.block is None:
            return Floats(values, 0, scales.reshape(-1, 1).expand(shape[0], 1).contiguous())
        return Floats(values, self.block[1], of_rows(scales, self.block[0], shape[0]))

    def describe(self) -> str:
        return "FP8" if self.block is None else f"FP8 in blocks of {self.block[0]} x {self.block[1]}"

    def _scale_name(self, module: str, shape: tuple[int, ...]) -> str:
        return f"{module}{self.scale.removeprefix('weight')}" if len(shape) == 3 else f"{module}.{self.scale}"


@dataclass(frozen=True, slots=True)
class Fp8Rules(Rules):
    """Fp8Rules are one scheme, and the modules that are left as they were."""

    marks: ClassVar[tuple[str, ...]] = (f".{SCALE}", f".{SCALE_OF_BLOCK}")

    block: tuple[int, int] | None
    excluded: Exclusions
    notes: tuple[str, ...]

    @property
    def expressions(self) -> tuple[str, ...]:
        return self.excluded.expressions

    @property
    def is_exact(self) -> bool:
        return False

    def declared(self, module: str, names: Collection[str]) -> Declared:
        inverse = f"{module}.{SCALE_OF_BLOCK}" in names or f"{module}_scale_inv" in names
        scheme = Fp8(self.block, SCALE_OF_BLOCK if inverse else SCALE)
        return declared_unless(self.excluded, module, scheme)


def read_rules(fields: ConfigFile) -> Fp8Rules:
    """Reads quantization_config. Raises ModelError."""
    for name, known in (("fmt", "e4m3"), ("expert_dtype", "fp8")):
        if fields.values.get(name) not in (None, known):
            raise fields.error(f"{name} is {shortened(fields.values[name])}, and only {known!r} is known; {INSTEAD}")
    scheme = fields.values.get("activation_scheme")
    if scheme not in (None, "static", "dynamic"):
        raise fields.error(f"activation_scheme is {shortened(scheme)}, neither 'static' nor 'dynamic'")
    notes = ["The checkpoint is made for activations in FP8; only its weights are taken so."]
    if fields.values.get("kv_cache_scheme"):
        notes.append("kv_cache_scheme is passed over: the cache keeps its own type.")
    block = block_size(fields, "weight_block_size")
    return Fp8Rules(block, Exclusions.read(fields, "ignored_layers", "modules_to_not_convert"), tuple(notes))


def block_size(fields: ConfigFile, name: str) -> tuple[int, int] | None:
    """Returns the outputs and inputs of a block; None where the field is missing. Raises ModelError."""
    block = fields.values.get(name)
    if block is None:
        return None
    if not isinstance(block, list) or len(block) != 2 or not all(type(size) is int and size > 0 for size in block):
        raise fields.error(f"{name} is {shortened(block)}, not two positive integers")
    if max(block) > MOST_GROUP:
        raise fields.error(f"{name} is {shortened(block)}, and no matrix is as large")
    if block[1] % GROUP:
        raise fields.error(f"{name} is {block}, and only blocks of multiples of {GROUP} inputs can be held; {INSTEAD}")
    return block[0], block[1]


def of_rows(scales: Tensor, rows: int, out: int) -> Tensor:
    """Returns the scales of blocks [blocks, groups] for each output, [out, groups]."""
    return scales.repeat_interleave(min(rows, out), dim=0)[:out].contiguous()
