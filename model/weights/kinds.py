"""The kinds of weights that a model may hold, on any device: the union of fp16.py, tiles.py and row_major.py."""

from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.model.weights.fp16 import Fp16Weight
from octavo.model.weights.row_major import RowMajorWeight
from octavo.model.weights.tiles import Int4Weight, Int8Weight

Weight = Tensor | Fp16Weight | Int8Weight | Int4Weight | RowMajorWeight
# A dtype: of a plain Tensor.
Kind = torch.dtype | type[Fp16Weight] | type[Int8Weight] | type[Int4Weight] | type[RowMajorWeight]


@dataclass(frozen=True, slots=True)
class ExpertWeights:
    """One layer's experts; where the weights are plain tensors, each tuple holds the views of one stacked tensor."""

    gate_up: tuple[Weight, ...]  # E of [2I, H]: w1 above w3
    down: tuple[Weight, ...]  # E of [H, I]: w2
