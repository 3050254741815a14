"""Checks what formats share: the size of a group, scales that must be finite, zeros that are all the middle."""

from reprlib import repr as shortened

import torch
from torch import Tensor

from octavo.model.config_file import ConfigFile, ModelError
from octavo.model.weights.kinds import GROUP

MOST_GROUP = 1 << 31  # inputs; no matrix has as many
MOST_SCALE = 2.0**90  # Sums over weights of a byte with larger scales could be infinite.


def group_size(fields: ConfigFile, *names: str) -> int:
    """Returns the inputs of a group; 0 for -1, which means a channel. Raises ModelError."""
    name = next((name for name in names if fields.values.get(name) is not None), names[0])
    size = fields.values.get(name)
    if size is None:
        raise fields.error(f"{name} is missing")
    if type(size) is not int or size == 0 or size < -1:
        raise fields.error(f"{name} is {shortened(size)}, neither a number of inputs nor -1")
    if size > 0 and size % GROUP:
        raise fields.error(f"{name} is {size}, and only multiples of {GROUP} can be held; take another group size")
    if size > MOST_GROUP:
        raise fields.error(f"{name} is {shortened(size)}, and no matrix has so many inputs")
    return max(size, 0)


def checked_scales(scales: Tensor, name: str) -> Tensor:
    """Returns the scales [out, groups] in one piece. Raises ModelError for NaNs and for numbers too large."""
    if not bool((scales.abs() <= MOST_SCALE).all()):  # A NaN is not below anything.
        raise ModelError(f"The scales {name} hold infinities or NaNs, or numbers beyond 2**90; download it again.")
    return scales.contiguous()


def unless_even(zeros: Tensor, bits: int) -> Tensor | None:
    """Returns the zeros [out, groups] uint8; None if all are the middle, as in a symmetric matrix."""
    return None if bool((zeros == 1 << (bits - 1)).all()) else zeros.contiguous()


def group_order(index: Tensor, group: int, name: str) -> Tensor | None:
    """Returns the stored inputs by their groups, [in] int64; None if they come so.

    `index` [in] is the group of each input. Raises ModelError where a group does not have its number of inputs.
    """
    inputs = len(index)
    wanted = torch.arange(inputs) // group
    index = index.long()
    if torch.equal(index, wanted):
        return None
    if not torch.equal(index.sort().values, wanted):
        raise ModelError(
            f"The groups in {name} do not have {group} inputs each, and no other groups can be held; "
            "take a checkpoint without act order."
        )
    return index.argsort(stable=True)
