"""Puts matrices that a checkpoint has quantised into weights of a device; no integer and no scale changes.

slices of a matrix (q, k and v; gate and up)  ->  one kind that holds them all  ->  its parts  ->  tiles or rows
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from octavo.model.loading.names import LayerNames, Matrix
from octavo.model.loading.quantised.joining import Held, kind_of, order_of, parts_of
from octavo.model.loading.quantised.stored import Affine, Floats, Stored
from octavo.model.loading.reader import Reader
from octavo.model.weights.forms import Weight
from octavo.model.weights.memory import Zeros
from octavo.model.weights.parts import Parts
from octavo.model.weights.precision import has_fp8
from octavo.model.weights.row_major import ROW_GROUP
from octavo.model.weights.row_major_kinds import KindRowMajor, fp8_form, row_major_form
from octavo.model.weights.tiles import TiledWeight, TileLayout

log = logging.getLogger(__name__)

Pairs = Sequence[tuple[Matrix, Matrix]]  # gate_up and down of experts


@dataclass(frozen=True, slots=True)
class Slices:
    """Slices are one matrix as the files have it, from its first row to its last."""

    name: str  # of the first slice, for errors
    each: tuple[Stored, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """Returns [out, in] of the slices together."""
        return sum(each.shape[0] for each in self.each), self.each[0].shape[1]

    @property
    def held(self) -> list[Held]:
        """Returns the slices that kinds may hold: all of them, or none."""
        held = [each for each in self.each if isinstance(each, Held)]
        return held if len(held) == len(self.each) else []


@dataclass(frozen=True, slots=True)
class Takeover:
    """A Takeover makes weights of what a checkpoint has quantised; what no kind holds is left to whoever asks."""

    reader: Reader
    device: torch.device
    zeros: Zeros

    def matrix(self, matrix: Matrix, terms: int) -> Weight | None:
        """Returns a weight; None where the checkpoint has not quantised the matrix, or where no kind holds it."""
        slices = self._read(matrix)
        taken = None if slices is None else self._take([slices], terms=terms)
        if taken is None:
            self._tell([matrix])
        return None if taken is None else taken[0]

    def experts(self, names: LayerNames) -> tuple[tuple[Weight, ...], tuple[Weight, ...]] | None:
        """Returns gate_up and down of a layer's experts, or None as `matrix` does.

        For a CPU each expert is read and put by itself; for a GPU all are held in one way.
        """
        pairs = list(zip(names.gate_up, names.down, strict=True))
        gate_up: list[Weight] = []
        down: list[Weight] = []
        for some in [[pair] for pair in pairs] if self.device.type == "cpu" else [pairs]:
            taken = self._pairs(some)
            if taken is None:
                self._tell((*names.gate_up, *names.down))
                return None
            gate_up += taken[0]
            down += taken[1]
        return tuple(gate_up), tuple(down)

    def _tell(self, matrices: Sequence[Matrix]) -> None:
        """Warns where a part of what one kernel takes is quantised, and another part is not: all of it changes."""
        quantised = [self.reader.scheme(source) is not None for matrix in matrices for source in matrix]
        if any(quantised) and not all(quantised):
            log.warning(
                "%s and what is computed with it are quantised in part: all is decoded, and held as plain weights are",
                matrices[0][0].name,
            )

    def _pairs(self, pairs: Pairs) -> tuple[Sequence[Weight], Sequence[Weight]] | None:
        upper: list[Slices] = []
        lower: list[Slices] = []
        for matrices in pairs:
            gate_up, down = map(self._read, matrices)
            if gate_up is None or down is None:
                return None
            gate_up, down = fold_order(gate_up, down)
            upper.append(gate_up)
            lower.append(down)
        gate_ups = self._take(upper, paired=True)
        downs = None if gate_ups is None else self._take(lower)
        return None if gate_ups is None or downs is None else (gate_ups, downs)

    def _read(self, matrix: Matrix) -> Slices | None:
        """Returns a matrix as the files have it; None where a slice is stored as it was trained."""
        found: list[Stored] = []
        for source in matrix:
            each = None if self.reader.scheme(source) is None else self.reader.read(source)
            if each is None or isinstance(each, Tensor):
                return None
            found.append(each)
        return Slices(matrix[0].name, tuple(found))

    def _take(self, matrices: Sequence[Slices], paired: bool = False, terms: int = 1) -> Sequence[Weight] | None:
        if self.device.type != "cpu":
            return self._rows(matrices)
        weights = [weight for each in matrices if (weight := in_tiles(each, self.zeros, paired, terms)) is not None]
        return weights if len(weights) == len(matrices) else None

    def _rows(self, matrices: Sequence[Slices]) -> Sequence[Weight] | None:
        """Holds matrices of one shape for a GPU; one that is older than float8 has plain weights instead."""
        if not all(isinstance(each, Floats) for matrix in matrices for each in matrix.each):
            return in_rows(matrices, self.zeros)
        return floats_in_rows(matrices, self.zeros) if has_fp8(self.device) else None


def fold_order(gate_up: Slices, down: Slices) -> tuple[Slices, Slices]:
    """Moves the act order of down into the rows of gate and up, which then compute its inputs in that order."""
    (lower,) = down.each
    if not isinstance(lower, Affine) or lower.order is None:
        return gate_up, down
    rows = lower.order.long()
    upper = replace(gate_up, each=tuple(each.rows(rows) for each in gate_up.each))
    return upper, replace(down, each=(replace(lower, order=None),))


def in_tiles(matrix: Slices, zeros: Zeros, paired: bool = False, terms: int = 1) -> Weight | None:
    """Holds one matrix for a CPU; paired means gate above up. Returns None if no kind holds it exactly.

    Raises ModelError for slices whose inputs come in different orders.
    """
    kind = kind_of(matrix.held) if matrix.held else None
    if kind is None:
        return None
    layout = TileLayout(kind, matrix.shape, paired)
    weight = TiledWeight.empty(layout, zeros, terms, order_of(matrix.held, matrix.name))
    _put(weight, [parts_of(each, kind) for each in matrix.held])
    return weight


def in_rows(matrices: Sequence[Slices], zeros: Zeros) -> Sequence[Weight] | None:
    """Holds matrices of one shape for a GPU, as one stack; returns None if its kernels have no form for them.

    Raises ModelError for slices of a matrix whose inputs come in different orders.
    """
    held = [each for matrix in matrices for each in matrix.held]
    kind = kind_of(held) if all(matrix.held for matrix in matrices) else None
    form = None if kind is None else row_major_form(kind)
    if kind is None or form is None:
        return None
    orders = [order_of(matrix.held, matrix.name) for matrix in matrices]
    form = replace(form, ordered=any(order is not None for order in orders))
    weights = form.stack(len(matrices), matrices[0].shape, zeros)
    for weight, matrix, order in zip(weights, matrices, orders, strict=True):
        if weight.order is not None:
            weight.order.copy_(torch.arange(len(weight.order)) if order is None else order)
        _put(weight, [parts_of(each, kind) for each in matrix.held])
    return weights


def floats_in_rows(matrices: Sequence[Slices], zeros: Zeros) -> Sequence[Weight] | None:
    """Holds float8 with the checkpoint's own scales, if all have the same groups and the kernels take these."""
    floats = [[each for each in matrix.each if isinstance(each, Floats)] for matrix in matrices]
    groups = {each.group for matrix in floats for each in matrix}
    if len(groups) > 1 or max(groups) % ROW_GROUP:
        return None
    weights = fp8_form(groups.pop()).stack(len(matrices), matrices[0].shape, zeros)
    for weight, matrix in zip(weights, floats, strict=True):
        _put(weight, [_parts_of_floats(each) for each in matrix])
    return weights


def _parts_of_floats(stored: Floats) -> Parts:
    codes = stored.values.view(torch.uint8)
    if not stored.group:
        return Parts(codes, stored.scales[:, 0])
    return Parts(codes, torch.ones(stored.shape[0]), stored.scales)


def _put(weight: TiledWeight | KindRowMajor, slices: Sequence[Parts]) -> None:
    first = 0
    for parts in slices:
        weight.put(parts, first)
        first += len(parts.codes)
