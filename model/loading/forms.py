"""Writes down as JSON how a weight is held, and makes a weight of such words and of the bytes that they describe."""

from typing import Any

import torch
from torch import Tensor

from octavo.model.weights.kinds import Kind, Weight
from octavo.model.weights.precision import Precision
from octavo.model.weights.tiles import GroupedWeight, Int4Weight, Int8Weight, TileLayout

TILED: dict[str, type[Int8Weight] | type[Int4Weight]] = {"int8": Int8Weight, "int4": Int4Weight}

Form = dict[str, Any]


def can_be_mapped(precision: Precision) -> bool:
    """Returns whether all weights of such a model are bytes that can lie in a file."""
    return all(_is_mappable(kind) for kind in (precision.experts, precision.linears))


def precision_form(precision: Precision) -> Form:
    return {
        "activations": _dtype(precision.activations),
        "experts": _kind(precision.experts),
        "linears": _kind(precision.linears),
    }


def variant_of(precision: Precision) -> str:
    """Returns the word for such a model in the name of its tile file."""
    return _kind(precision.experts)


def form_of(weight: Weight) -> Form:
    """Describes all of a plain or tiled weight but its bytes."""
    if isinstance(weight, Tensor):
        return {"dtype": _dtype(weight.dtype), "shape": list(weight.shape)}
    assert isinstance(weight, GroupedWeight), "no other weight is prepared"
    return {
        "kind": _kind(type(weight)),
        "shape": list(weight.shape),
        "interleaved": weight.layout.interleaved,
        "terms": weight.terms,
    }


def contents_of(weight: Weight) -> memoryview:
    """Returns the bytes of a plain or tiled weight, in the memory where they are."""
    assert isinstance(weight, Tensor | GroupedWeight), "no other weight is prepared"
    held = weight if isinstance(weight, Tensor) else weight.cells
    return held.contiguous().view(-1).view(torch.uint8).numpy().data


def weight_from(form: Form, memory: Tensor) -> Weight:
    """Makes a weight of its bytes [n] uint8, which it keeps. Raises KeyError, TypeError, ValueError or RuntimeError."""
    if "dtype" in form:
        dtype = {_dtype(each): each for each in (torch.float32, torch.bfloat16, torch.float16)}[form["dtype"]]
        return memory.view(dtype).view(form["shape"])
    out, inputs = form["shape"]
    kind, layout = TILED[form["kind"]], TileLayout((out, inputs), form["interleaved"])
    return kind.empty(layout, lambda shape, dtype: memory.view(dtype).view(shape), form["terms"])


def _is_mappable(kind: Kind) -> bool:
    return isinstance(kind, torch.dtype) or kind in TILED.values()


def _kind(kind: Any) -> str:
    if isinstance(kind, torch.dtype):
        return _dtype(kind)
    return next((name for name, each in TILED.items() if each is kind), kind.__name__)


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
