"""Writes down as JSON how a weight is held, and makes a weight of such words and of the bytes that they describe."""

import json
import math
from typing import Any

import torch
from torch import Tensor

from octavo.model.prepared.places import kept
from octavo.model.weights.forms import Form, Weight
from octavo.model.weights.kinds import Kind
from octavo.model.weights.precision import SHORT, Precision
from octavo.model.weights.tiles import TiledWeight, TileLayout

Description = dict[str, Any]


def can_be_mapped(precision: Precision) -> bool:
    """Returns whether all weights of such a model are bytes that can lie in a file."""
    return all(
        _is_mappable(form) for form in (precision.experts, precision.linears, precision.downs or precision.experts)
    )


def precision_form(precision: Precision) -> Description:
    """Describes how a model is held and computed. A word such as int4 may come to mean another kind, so kinds are told.

    It is what JSON makes of it, so that it can be compared with what was read.
    """
    described = {
        "activations": _dtype(precision.activations),
        "experts": _form(precision.experts),
        "linears": _form(precision.linears),
        "downs": None if precision.downs is None else _form(precision.downs),
        "keeps": precision.keeps,
    }
    read: Description = json.loads(json.dumps(described))
    return read


def variant_of(precision: Precision) -> str:
    """Returns the word for such a model in the name of its tile file."""
    word = _word(precision.experts)
    return kept(word) if precision.keeps else word


def form_of(weight: Weight) -> Description:
    """Describes all of a plain or tiled weight but its bytes."""
    if isinstance(weight, Tensor):
        return {"dtype": _dtype(weight.dtype), "shape": list(weight.shape)}
    assert isinstance(weight, TiledWeight), "no other weight is prepared"
    tiled = {
        "kind": weight.kind.to_json(),
        "shape": list(weight.shape),
        "interleaved": weight.layout.interleaved,
        "terms": weight.terms,
    }
    return tiled if weight.order is None else tiled | {"order": _dtype(weight.order.dtype)}


def contents_of(weight: Weight) -> memoryview:
    """Returns the bytes of a plain or tiled weight, in the memory where they are; an order comes behind the tiles."""
    assert isinstance(weight, Tensor | TiledWeight), "no other weight is prepared"
    order = None if isinstance(weight, Tensor) else weight.order
    held = _bytes(weight if isinstance(weight, Tensor) else weight.memory)
    contents: memoryview = (held if order is None else torch.cat((held, _bytes(order)))).numpy().data
    return contents


def weight_from(form: Description, memory: Tensor) -> Weight:
    """Makes a weight of its bytes [n] uint8, which it keeps. Raises KeyError, TypeError, ValueError or RuntimeError."""
    if "dtype" in form:
        dtype = {_dtype(each): each for each in (torch.float32, torch.bfloat16, torch.float16)}[form["dtype"]]
        return memory.view(dtype).view(form["shape"])
    out, inputs = form["shape"]
    layout = TileLayout(Kind.from_json(form["kind"]), (out, inputs), form["interleaved"])
    tiles = memory
    order = None
    if "order" in form:
        tiles, behind = memory.split((math.prod(layout.size), inputs * torch.int32.itemsize))
        order = _permutation(behind.view(torch.int32))
    return TiledWeight.empty(layout, lambda shape, dtype: tiles.view(dtype).view(shape), form["terms"], order)


def _bytes(held: Tensor) -> Tensor:
    return held.contiguous().view(-1).view(torch.uint8)


def _permutation(order: Tensor) -> Tensor:
    """Returns the order. Raises ValueError if it is no permutation: the kernels would read beyond the activations."""
    if not torch.equal(order.sort().values, torch.arange(len(order), dtype=order.dtype)):
        raise ValueError("the order of the inputs is no permutation")
    return order


def _is_mappable(form: Form) -> bool:
    return isinstance(form, torch.dtype | Kind)


def _form(form: Form) -> Any:
    return form.to_json() if isinstance(form, Kind) else _word(form)


def _word(form: Form) -> str:
    return _dtype(form) if isinstance(form, torch.dtype) else SHORT[form]


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
