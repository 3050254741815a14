"""Finds the kind that holds matrices of a checkpoint exactly, several of them as slices of one, and makes its parts."""

from collections.abc import Sequence
from functools import reduce
from math import gcd, lcm

import torch
from torch import Tensor

from octavo.model.config_file import ModelError
from octavo.model.gguf.blocks import Blocks, joined
from octavo.model.loading.quantised.stored import Affine, Table
from octavo.model.weights.kinds import BLOCK, CELL, GROUP, SCALE_TYPES, Kind, Offset, Scale
from octavo.model.weights.parts import Parts

Held = Affine | Table | Blocks  # what kinds hold

SIGNED, UNSIGNED = tuple(range(-8, 8)), tuple(range(16))
MIDDLE = 128  # of a byte
FLOAT_SCALES = {SCALE_TYPES[scale]: scale for scale in (Scale.FLOAT16, Scale.BFLOAT16, Scale.FLOAT32)}


def kind_of(slices: Sequence[Held]) -> Kind | None:
    """Returns the kind that holds all slices exactly; None: no kind does, because tables differ from whole steps.

    It has the widest codes, groups that divide those of all slices, scales of a type that holds all, and zeros if any
    slice has some.
    """
    affine = [each for each in slices if isinstance(each, Affine)]
    if len(affine) == len(slices):
        return _affine_kind(affine)
    blocks = [each for each in slices if isinstance(each, Blocks)]
    if len(blocks) == len(slices):
        return joined(each.kind for each in blocks)
    tables = [each for each in slices if isinstance(each, Table)]
    same = len(tables) == len(slices) and len({(each.values, each.group, each.factor) for each in tables}) == 1
    return Kind(tables[0].values, tables[0].group, Scale.E8M0) if same else None


def order_of(slices: Sequence[Held], name: str) -> Tensor | None:
    """Returns the one order of the inputs, [in] int32. Raises ModelError where slices of one matrix differ."""
    orders = [each.order if isinstance(each, Affine) else None for each in slices]
    first = orders[0]
    for order in orders[1:]:
        if (order is None) != (first is None) or (order is not None and first is not None and not order.equal(first)):
            raise ModelError(
                f"The matrices of {name} have inputs in different act orders, and one kernel multiplies by all; "
                "take a checkpoint without act order."
            )
    return first


def parts_of(stored: Held, kind: Kind) -> Parts:
    """Returns a slice's parts in a kind that `kind_of` found for it; nothing is rounded."""
    if isinstance(stored, Blocks):
        return stored.parts(kind)
    if isinstance(stored, Table):
        return Parts(stored.codes, torch.full((stored.shape[0],), stored.factor), stored.scales)
    raised = MIDDLE - stored.middle if kind.values is None else 0  # from codes of 4 bits to those of 8
    zeros = _zeros(stored) + raised if kind.offset is Offset.ZERO else None
    codes = stored.codes + raised if raised else stored.codes
    if kind.group == 0:
        offsets = None if zeros is None else zeros.float() - kind.bias
        return Parts(codes, stored.scales[:, 0].float(), None, offsets)
    assert kind.scale_type is not None
    scales = _spread(stored.scales, stored, kind.group).to(kind.scale_type)
    offsets = None if zeros is None else _spread(zeros, stored, kind.group)
    return Parts(codes, torch.ones(stored.shape[0]), scales, offsets)


def _affine_kind(slices: Sequence[Affine]) -> Kind:
    wide = max(each.bits for each in slices) == 8
    zeros = any(each.zeros is not None for each in slices)
    offset = Offset.ZERO if zeros else Offset.NONE
    values = None if wide else UNSIGNED if zeros else SIGNED
    grouped = [each.group for each in slices if each.group]
    if not grouped:
        return Kind(values, 0, Scale.NONE, offset)
    types = {each.scales.dtype for each in slices}
    scale = FLOAT_SCALES[types.pop()] if len(types) == 1 else Scale.FLOAT32
    return Kind(values, _held(reduce(gcd, grouped), slices[0].shape[1]), scale, offset)


def _held(group: int, inputs: int) -> int:
    """Returns the largest group that divides a group, that blocks hold, and that pads the inputs to whole cells alone.

    The parts repeat its scale. Experts of a layer share their activations, so all must be padded to one length.
    """
    cells = -(-inputs // CELL) * CELL

    def is_held(size: int) -> bool:
        return group % size == 0 and lcm(CELL, size) <= BLOCK and cells % lcm(CELL, size) == 0

    return next(filter(is_held, range(min(group, BLOCK), 0, -GROUP)))


def _zeros(stored: Affine) -> Tensor:
    """Returns the zero of each group, [out, groups] uint8."""
    if stored.zeros is not None:
        return stored.zeros
    return torch.full(stored.scales.shape, stored.middle, dtype=torch.uint8)


def _spread(numbers: Tensor, stored: Affine, group: int) -> Tensor:
    """Returns the number of each group [out, groups] for each of the kind's smaller groups."""
    inputs = stored.shape[1]
    count = -(-inputs // group)
    if not stored.group:
        return numbers.expand(-1, count)
    times = min(stored.group // group, count)
    return numbers if times == 1 else numbers.repeat_interleave(times, dim=1)[:, :count]
