"""Finds out what a loaded model has to choose from, and whether the choice makes a difference."""

import torch
from torch import Tensor

from octavo.engine.api import ExpertShape
from octavo.model.decoder import Decoder
from octavo.model.weights.forms import ExpertWeights, Weight, held_tensors


def expert_shape(model: Decoder) -> ExpertShape | None:
    """Returns what the routers choose from; returns None for a dense model."""
    layers, config = model.config.sparse_layers(), model.config
    if not layers:
        return None
    identical = all(are_identical(model.layers[layer].moe.experts) for layer in layers)
    return ExpertShape(layers, config.num_experts, config.num_experts_per_tok, identical)


def are_identical(experts: ExpertWeights) -> bool:
    """Returns whether all experts of a layer have the same numbers, as they are held.

    Experts that differ mostly do so in their first bytes, so that only copies are read to their end.
    """
    pairs = [(side[0], other) for side in (experts.gate_up, experts.down) for other in side[1:]]
    if not all(_equal(one, other, whole) for whole in (False, True) for one, other in pairs):
        return False
    biases = (bias for bias in (experts.gate_up_bias, experts.down_bias) if bias is not None)
    return all(torch.equal(bias, bias[:1].expand_as(bias)) for bias in biases)


def _equal(one: Weight, other: Weight, whole: bool) -> bool:
    """Compares the bytes that two matrices are held in, or only the first of them."""
    ours, theirs = (held_tensors(weight) for weight in (one, other))
    return len(ours) == len(theirs) and all(map(_same_bytes if whole else _begin_alike, ours, theirs))


def _begin_alike(one: Tensor, other: Tensor) -> bool:
    return _same_bytes(one[:1], other[:1])


def _same_bytes(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    whole_words = one.shape[-1] * one.itemsize % torch.int64.itemsize == 0
    word = torch.int64 if whole_words else torch.uint8  # Comparing words takes a fraction of the time.
    return torch.equal(one.view(word), other.view(word))
