"""Joins the matrices of a GPU into what its kernels read: all experts of one projection, in one tensor per part."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from octavo.model.families import Swiglu

Shape = tuple[int, int]  # (out, in)

SILU = Swiglu()
PLAIN = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


@dataclass(frozen=True, slots=True)
class Format:
    """A Format says what the numbers of a matrix mean to the kernels, which are compiled for it.

        weight = factor * scale * (value - zero)    or    factor * scale * value + minimum

    The value of a code in int4 is the code + base; fp4 is twice its value as E2M1; int8 and fp8 are their own values.
    """

    kind: str  # bf16, fp16, fp32, int8, int4, fp4 or fp8
    group: int = 0  # inputs that share a scale; 0: the factor alone scales an output
    scale: Literal["none", "float16", "bfloat16", "float32", "e8m0"] = "none"
    offset: Literal["none", "zero", "minimum"] = "none"
    base: int = 0


class StackedWeight(ABC):
    """A StackedWeight is a quantised matrix of a GPU, and a view of its layer's stack."""

    __slots__ = ()

    shape: Shape

    @property
    @abstractmethod
    def format(self) -> Format:
        """Returns how kernels read it."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Returns the tensors that hold it, by their names in a Stack."""

    @abstractmethod
    def dense(self) -> Tensor:
        """Returns the weights as they are held, as float32 [out, in]."""

    @property
    def nbytes(self) -> int:
        """Returns the bytes it takes."""
        return sum(part.nbytes for part in self.tensors().values())


@dataclass(frozen=True, slots=True)
class Stack:
    """A Stack is what a kernel reads. The types that make its matrices say how each part lies in memory."""

    format: Format
    shape: Shape  # (out, in), each expert's
    quants: Tensor  # [E, out, in]; int4 and fp4: [E, out, words]
    # [E, groups, out] float32; [E, groups, out, 2] of 16 bits, beside an offset; [E, tiles, out, 4] e8m0
    scales: Tensor | None = None
    offsets: Tensor | None = None  # [E, groups, out] float32, where they do not lie beside the scales
    factors: Tensor | None = None  # [E, 1, out] float32
    order: Tensor | None = None  # [E, in] int32: stored input n multiplies x[order[n]]
    bias: Tensor | None = None  # [E, out] of the activations' dtype
    activation: Swiglu = SILU  # of gate above up

    @property
    def kind(self) -> str:
        """Returns the kind of its weights in the table of configurations."""
        return self.format.kind

    def tensors(self) -> dict[str, Tensor]:
        """Returns its parts by their names."""
        named = {"quants": self.quants, "scales": self.scales, "offsets": self.offsets}
        named |= {"factors": self.factors, "order": self.order}
        return {name: part for name, part in named.items() if part is not None}

    @classmethod
    def of(cls, weights: Sequence[object], bias: Tensor | None = None, activation: Swiglu = SILU) -> "Stack":
        """Joins E views that the loader has made, and copies nothing. Raises ValueError if they are not one stack.

        A bias is [E, out], of the activations' dtype. An activation is what follows the product with gate above up.
        """
        first = weights[0]
        if isinstance(first, Tensor) and first.dtype in PLAIN:
            kind, shape = Format(PLAIN[first.dtype]), (first.shape[0], first.shape[1])
            return cls(kind, shape, _joined(weights), bias=bias, activation=activation)
        if not isinstance(first, StackedWeight):
            raise ValueError(f"{type(first).__name__} weights cannot be stacked")
        held = [weight for weight in weights if isinstance(weight, StackedWeight) and weight.format == first.format]
        if len(held) < len(weights):
            raise ValueError("weights that are held in different ways cannot be stacked")
        parts = [weight.tensors() for weight in held]
        joined = {name: _joined([part.get(name) for part in parts]) for name in set().union(*parts)}
        return cls(first.format, first.shape, bias=bias, activation=activation, **joined)


def _joined(views: Sequence[object]) -> Tensor:
    """Joins views [...] that lie one behind the other to one tensor [E, ...]. Raises ValueError for others."""
    first = views[0]
    for number, view in enumerate(views):
        if not (isinstance(first, Tensor) and isinstance(view, Tensor) and _follows(view, first, number)):
            raise ValueError("the matrices are not consecutive views of one tensor")
    assert isinstance(first, Tensor)
    return first.as_strided((len(views), *first.shape), (first.numel(), *first.stride()))


def _follows(view: Tensor, first: Tensor, number: int) -> bool:
    """Returns whether a view is the number-th of its size from the first one on."""
    return (
        view.is_contiguous()
        and (view.shape, view.dtype, view.device) == (first.shape, first.dtype, first.device)
        and view.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        and view.storage_offset() == first.storage_offset() + number * first.numel()
    )
