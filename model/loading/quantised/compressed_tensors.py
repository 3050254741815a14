"""Reads compressed-tensors, as llm-compressor writes it: packed whole numbers, int8 and float8.

    pack-quantized     weight_packed [out, in / per word]            a word of 32 bits has its first input lowest
                       weight_zero_point [out / per word, groups]    packed down the outputs; once int8 [out, groups]
                       weight_g_idx [in], weight_shape [2]
    int-quantized      weight [out, in] int8, weight_zero_point [out, groups] int8
    float-quantized    weight [out, in] float8_e4m3fn
    all                weight_scale: one number, [out, 1], [out, groups] or one for each block

Codes and zeros are signed; half of the range is added to those that are packed.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from reprlib import repr as shortened
from typing import Any, ClassVar

import torch
from torch import Tensor

from octavo.model.config_file import ConfigFile, ModelError
from octavo.model.loading.quantised.checks import checked_scales, group_order, group_size, unless_even
from octavo.model.loading.quantised.exclusions import REGEX, Exclusions, Match, expressions_in, patterns
from octavo.model.loading.quantised.fp8 import Fp8, block_size
from octavo.model.loading.quantised.packed import unpacked_down, unpacked_rows
from octavo.model.loading.quantised.rules import Declared, Rules
from octavo.model.loading.quantised.scheme import FLOATS, Get, Scheme, Spec, found, groups, stacked
from octavo.model.loading.quantised.stored import Affine

PACKED, INT, FLOAT, NAIVE = "pack-quantized", "int-quantized", "float-quantized", "naive-quantized"
INSTEAD = f"take the checkpoint in {PACKED}, {INT} or {FLOAT}"
PACKED_BITS = (4, 8)
EMBEDDING = "embed_tokens"  # All other matrices are Linear.
FORMATS = {"int": (PACKED, INT, NAIVE), "float": (FLOAT, NAIVE)}  # of each type


@dataclass(frozen=True, slots=True)
class Whole(Scheme):
    """A Whole is a matrix of whole numbers; their scales belong to the tensor, to outputs or to groups."""

    bits: int
    strategy: str  # tensor, channel or group
    group: int  # 0 unless the strategy is group
    symmetric: bool
    packed: bool
    act_order: bool

    def tensors(self, module: str, shape: tuple[int, ...]) -> dict[str, Spec]:
        out, inputs = shape[-2:]
        per_word = 32 // self.bits
        scales = [stacked(shape, out, groups(inputs, self.group))]
        if self.strategy == "tensor":
            scales = [stacked(shape), stacked(shape, 1), stacked(shape, 1, 1)]
        specs = {f"{module}.weight_scale": Spec(FLOATS, tuple(scales))}
        if self.packed:
            words = stacked(shape, out, -(-inputs // per_word))
            specs[f"{module}.weight_packed"] = Spec(("I32",), (words,))
            specs[f"{module}.weight_shape"] = Spec(("I64", "I32"), (stacked(shape, 2),), optional=True)
            specs[f"{module}.weight_g_idx"] = Spec(
                ("I32", "I64"), (stacked(shape, inputs),), optional=not self.act_order
            )
            scales.append(stacked(shape, -(-out // per_word), groups(inputs, self.group)))
        else:
            specs[f"{module}.weight"] = Spec(("I8",), (shape,))
        zeros = Spec(("I32", "I8") if self.packed else ("I8",), tuple(scales), optional=self.symmetric)
        return specs | {f"{module}.weight_zero_point": zeros}

    def read(self, get: Get, module: str, shape: tuple[int, int]) -> Affine:
        order = self._order(get, module)
        scales = checked_scales(get(f"{module}.weight_scale"), f"{module}.weight_scale")
        zeros = self._zeros(get, module, shape[0])
        return Affine(
            codes=self._codes(get, module, shape, order),
            bits=self.bits,
            group=self.group,
            scales=_of_outputs(scales, shape[0]),
            zeros=zeros,
            order=None if order is None else order.int(),
        )

    def describe(self) -> str:
        spread = f"in groups of {self.group}" if self.group else f"with a scale for each {self.strategy}"
        return f"compressed-tensors, {self.bits} bits {spread}"

    @property
    def _middle(self) -> int:
        return 1 << (self.bits - 1)

    def _codes(self, get: Get, module: str, shape: tuple[int, int], order: Tensor | None) -> Tensor:
        if not self.packed:
            return _unsigned(get(f"{module}.weight"), self._middle)
        stated = found(get, f"{module}.weight_shape")
        if stated is not None and tuple(stated.tolist()) != shape:
            raise ModelError(f"{module}.weight_shape is {stated.tolist()}, not {list(shape)}; use its own config.json.")
        return unpacked_rows(get(f"{module}.weight_packed"), self.bits, shape[1], order)

    def _zeros(self, get: Get, module: str, out: int) -> Tensor | None:
        """Returns the zeros with half of the range added, [out, groups] uint8; None if all are 0 before that."""
        name = f"{module}.weight_zero_point"
        stored = found(get, name)  # Older files of symmetric weights have them, too.
        if stored is None:
            return None
        packed = self._are_packed(stored, name, out)
        zeros = unpacked_down(stored, self.bits, None)[:, :out].T if packed else _unsigned(stored, self._middle)
        uneven = unless_even(_of_outputs(zeros, out), self.bits)
        if self.symmetric and uneven is not None:
            raise ModelError(f"{name} is not 0, though symmetric is true; download both again.")
        return uneven

    def _are_packed(self, zeros: Tensor, name: str, out: int) -> bool:
        """Returns whether zeros lie in words. Raises ModelError where they have the shape of the other type."""
        packed = zeros.dtype == torch.int32
        rows = len(zeros) if zeros.dim() else 1
        if rows not in ({-(-out * self.bits // 32)} if packed else {1, out}) or (packed and zeros.dim() < 2):
            raise ModelError(
                f"{name} has the shape {list(zeros.shape)}, and in I32 it is packed, {32 // self.bits} outputs to a "
                "word, while I8 has one zero for each scale; download the checkpoint again."
            )
        return packed

    def _order(self, get: Get, module: str) -> Tensor | None:
        """Returns the inputs by their groups, [in] int64; None if they come so. Raises ModelError for broken groups."""
        name = f"{module}.weight_g_idx"
        index = found(get, name) if self.packed and self.group else None
        # Where nothing was reordered, some writers leave -1 everywhere.
        return None if index is None or bool((index == -1).all()) else group_order(index, self.group, name)


@dataclass(frozen=True, slots=True)
class Group:
    """A Group is one of config_groups: the modules that it targets, and how they are stored."""

    targets: tuple[str, ...]  # names, regular expressions after "re:", and classes such as Linear
    scheme: Scheme


@dataclass(frozen=True, slots=True)
class CompressedRules(Rules):
    """CompressedRules are the groups of modules, and those that are left as they were."""

    marks: ClassVar[tuple[str, ...]] = (".weight_packed", ".weight_scale")

    groups: tuple[Group, ...]
    excluded: Exclusions
    notes: tuple[str, ...]

    @property
    def expressions(self) -> tuple[str, ...]:
        targets = tuple(target for group in self.groups for target in group.targets)
        return self.excluded.expressions + expressions_in(targets)

    @property
    def is_exact(self) -> bool:
        return not any(isinstance(group.scheme, Fp8) for group in self.groups)

    def declared(self, module: str, names: Collection[str]) -> Declared:
        """Takes the surest target: a name, then a regular expression, then a class."""
        if self.excluded.of(module) is Match.YES:
            return Declared(None, certain=True, reason=f"{self.excluded.field} says that")
        for matches in (_is_named, _is_matched, _is_of_class):
            for group in self.groups:
                if any(matches(target, module) for target in group.targets):
                    return Declared(group.scheme, matches is _is_named, "config_groups says that")
        return Declared(None, certain=True, reason="config_groups has no target for it, so that")


def read_rules(fields: ConfigFile) -> CompressedRules:
    """Reads quantization_config or compression_config. Raises ModelError."""
    for name in ("transform_config", "moe_sparsity_config"):
        if fields.values.get(name):
            raise fields.error(f"{name} is set, and changes of that kind are not known; {INSTEAD} without them")
    sparsity = fields.values.get("sparsity_config") or {}
    if not isinstance(sparsity, dict) or sparsity.get("format", "dense") != "dense":
        raise fields.error(f"sparsity_config is {shortened(sparsity)}, and sparse weights are not known; {INSTEAD}")
    listed, notes = [], []
    for name, values in _config_groups(fields).items():
        if values.get("weights") is not None:
            listed.append(_group(ConfigFile(fields.path, values), name, fields.values.get("format")))
        if values.get("input_activations"):
            notes.append(f"{name} is made for quantised activations; only its weights are taken so.")
    if fields.values.get("kv_cache_scheme"):
        notes.append("kv_cache_scheme is passed over: the cache keeps its own type.")
    return CompressedRules(tuple(listed), Exclusions.read(fields, "ignore"), tuple(notes))


def _config_groups(fields: ConfigFile) -> dict[str, dict[str, Any]]:
    values = fields.values.get("config_groups")
    if not isinstance(values, dict) or not values or not all(isinstance(each, dict) for each in values.values()):
        raise fields.error(f"config_groups is {shortened(values)}, not an object of objects")
    return values


def _group(fields: ConfigFile, name: str, overall: object) -> Group:
    targets, weights = patterns(fields, "targets"), fields.values["weights"]
    if not targets:
        raise fields.error(f"{name} has no targets")
    if not isinstance(weights, dict):
        raise fields.error(f"weights of {name} is {shortened(weights)}, not an object")
    stored = fields.values.get("format") or overall
    if stored not in (PACKED, INT, FLOAT, NAIVE):
        raise fields.error(f"format of {name} is {shortened(stored)}, which is not known; {INSTEAD}")
    return Group(targets, _scheme(ConfigFile(fields.path, weights), str(stored)))


def _scheme(weights: ConfigFile, stored: str) -> Scheme:
    symmetric = weights.flag("symmetric") if weights.values.get("symmetric") is not None else True
    kind, bits = weights.values.get("type", "int"), weights.integer("num_bits", default=8)
    strategy = _strategy(weights)
    group = group_size(weights, "group_size") if strategy == "group" else 0
    if stored not in FORMATS.get(str(kind), ()):
        raise weights.error(f"type is {shortened(kind)} in the format {stored}; use the config.json of these weights")
    if kind == "float":
        return _float(weights, bits, strategy, symmetric)
    if bits not in PACKED_BITS or strategy == "block":
        raise weights.error(
            f"num_bits is {bits} with strategy {strategy!r}, and only 4 and 8 bits are known; {INSTEAD}"
        )
    act_order = stored == PACKED and weights.values.get("actorder") in ("group", "dynamic", True)
    # Whole numbers that are not packed are bytes, whatever their range.
    return Whole(bits if stored == PACKED else 8, strategy, group, symmetric, stored == PACKED, act_order)


def _float(weights: ConfigFile, bits: int, strategy: str, symmetric: bool) -> Fp8:
    if bits != 8 or strategy == "group" or not symmetric:
        raise weights.error(f"num_bits is {bits} with strategy {strategy!r}, and no such floats are known; {INSTEAD}")
    block = block_size(weights, "block_structure")
    if (block is None) == (strategy == "block"):
        raise weights.error("block_structure and strategy contradict each other")
    return Fp8(block)


def _strategy(weights: ConfigFile) -> str:
    """Returns what shares a scale; without a word on it, the size of a group says it."""
    size = weights.values.get("group_size")
    strategy = weights.values.get("strategy") or ("tensor" if size is None else "channel" if size == -1 else "group")
    if strategy not in ("tensor", "channel", "group", "block"):
        raise weights.error(f"strategy is {shortened(strategy)}, which is not known; {INSTEAD}")
    return str(strategy)


def _is_named(target: str, module: str) -> bool:
    return target == module


def _is_matched(target: str, module: str) -> bool:
    return target.startswith(REGEX) and re.match(target.removeprefix(REGEX), module) is not None


def _is_of_class(target: str, module: str) -> bool:
    return target == ("Embedding" if module.endswith(EMBEDDING) else "Linear")


def _unsigned(numbers: Tensor, middle: int) -> Tensor:
    """Adds half of the range to numbers in int8: uint8."""
    return (numbers.view(torch.uint8) + middle) & (2 * middle - 1)


def _of_outputs(numbers: Tensor, out: int) -> Tensor:
    """Returns one number or [out, groups] as [out, groups]."""
    return (
        numbers if numbers.dim() == 2 and len(numbers) == out else numbers.reshape(1, 1).expand(out, 1)
    ).contiguous()
