"""Puts matrices that a checkpoint has quantised into weights of a device; no integer and no scale changes.

slices of a matrix (q, k and v; gate and up)  ->  one kind that holds them all  ->  its parts  ->  tiles or rows
"""

from collections.abc import Sequence
from dataclasses import replace

from octavo.model.loading.quantised.joining import kind_of, order_of, parts_of
from octavo.model.loading.quantised.stored import Affine, Stored, Table
from octavo.model.weights.forms import Weight
from octavo.model.weights.memory import Zeros
from octavo.model.weights.tiles import TiledWeight, TileLayout

Slices = Sequence[Stored]  # of one matrix, from its first row to its last
Held = Sequence[Affine | Table]


def fold_order(gate_up: Slices, down: Slices) -> tuple[Slices, Slices]:
    """Moves the act order of down into the rows of gate and up, which then compute its inputs in that order."""
    (lower,) = down
    if not isinstance(lower, Affine) or lower.order is None:
        return gate_up, down
    rows = lower.order.long()
    return [each.rows(rows) for each in gate_up], [replace(lower, order=None)]


def take_over(matrix: Slices, name: str, zeros: Zeros, paired: bool = False, terms: int = 1) -> Weight | None:
    """Holds one matrix in tiles for a CPU; paired means gate above up. Returns None if no kind holds it exactly.

    Raises ModelError for slices whose inputs come in different orders.
    """
    held = _affine_or_table(matrix)
    kind = None if held is None else kind_of(held)
    if held is None or kind is None:
        return None
    layout = TileLayout(kind, _shape(matrix), paired)
    weight = TiledWeight.empty(layout, zeros, terms, order_of(held, name))
    first = 0
    for each in held:
        weight.put(parts_of(each, kind), first)
        first += each.shape[0]
    return weight


def _affine_or_table(matrix: Slices) -> Held | None:
    held = [each for each in matrix if isinstance(each, Affine | Table)]
    return held if len(held) == len(matrix) else None


def _shape(matrix: Slices) -> tuple[int, int]:
    """Returns [out, in] of the slices together."""
    return sum(each.shape[0] for each in matrix), matrix[0].shape[1]
