"""Joins the kinds of weights that a model may hold on any device, from fp16.py, tiles.py and row_major.py."""

from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.model.weights.fp16 import Fp16Weight
from octavo.model.weights.row_major import RowMajorWeight
from octavo.model.weights.tiles import Int4Weight, Int8Weight

Weight = Tensor | Fp16Weight | Int8Weight | Int4Weight | RowMajorWeight
# A dtype is the kind of a plain Tensor.
Kind = torch.dtype | type[Fp16Weight] | type[Int8Weight] | type[Int4Weight] | type[RowMajorWeight]


@dataclass(frozen=True, slots=True)
class ExpertWeights:
    """ExpertWeights are the experts of a layer; plain tensors and row-major weights are views of one stacked tensor."""

    gate_up: tuple[Weight, ...]  # E matrices [2I, H]: w1 above w3
    down: tuple[Weight, ...]  # E matrices [H, I]: w2
