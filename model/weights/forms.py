"""Joins the forms that a matrix may be held in, on a CPU and on a GPU."""

from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.model.families import Swiglu
from octavo.model.weights.fp16 import Fp16Weight
from octavo.model.weights.kinds import Kind
from octavo.model.weights.row_major import RowMajorWeight
from octavo.model.weights.stack import StackedWeight
from octavo.model.weights.tiles import TiledWeight

Weight = Tensor | Fp16Weight | TiledWeight | StackedWeight
# A dtype is the form of a plain Tensor, and a Kind that of a TiledWeight.
Form = torch.dtype | Kind | type[Fp16Weight] | type[RowMajorWeight]


def held_tensors(weight: Weight) -> list[Tensor]:
    """Returns what a matrix is held in: two matrices of one form are equal if all of these are."""
    match weight:
        case Tensor():
            return [weight]
        case Fp16Weight():
            return [weight.dense()]  # Its own tiles are opaque.
        case TiledWeight():
            return [weight.memory, *([] if weight.order is None else [weight.order])]
        case StackedWeight():
            return list(weight.tensors().values())


@dataclass(frozen=True, slots=True)
class ExpertWeights:
    """ExpertWeights are the experts of a layer; plain tensors and row-major weights are views of one stacked tensor."""

    gate_up: tuple[Weight, ...]  # E matrices [2I, H]: w1 above w3
    down: tuple[Weight, ...]  # E matrices [H, I]: w2
    gate_up_bias: Tensor | None = None  # [E, 2I], in the dtype of the activations
    down_bias: Tensor | None = None  # [E, H]
    activation: Swiglu = Swiglu()
