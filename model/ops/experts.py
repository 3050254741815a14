"""Computes experts with gated activations: each token passes through those that its router chose."""

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.model.families import Swiglu
from octavo.model.ops.linear import Linear, linear, linear_reference
from octavo.model.weights.forms import ExpertWeights


def experts(x: Tensor, ids: Tensor, weights: Tensor, expert_weights: ExpertWeights, product: Linear = linear) -> Tensor:
    """Maps x [T, H], ids [T, k], weights [T, k] float32 to [T, H].

    The rounding of a row depends on the other rows only as far as that of `product` does.
    """
    chosen = _choose(x, ids, expert_weights, product)  # [T, k, H]
    total = weights[:, 0, None] * chosen[:, 0]
    for choice in range(1, ids.shape[1]):
        total += weights[:, choice, None] * chosen[:, choice]
    return total.to(x.dtype)


def _choose(x: Tensor, ids: Tensor, expert_weights: ExpertWeights, product: Linear) -> Tensor:
    """Maps x [T, H] and ids [T, k] to each token's output of each expert that was chosen for it, [T, k, H].

    The T * k pairs (token, chosen expert) are sorted by expert; an expert multiplies all of its pairs at once:

        ids    [[2, 0],   pairs  t0->2 t0->0 t1->0 t1->1    order   1    2    3    0
                [0, 1]]                                     expert  0    0    1    2
                                                            token   t0   t1   t1   t0
    """
    tokens, top_k = ids.shape
    if len(expert_weights.down) == 1:  # a dense layer takes all rows at once, as they are
        return _swiglu(x, expert_weights, 0, product)[:, None]
    if tokens == 1:  # nothing to sort, and sorting would cost a tenth of a lone stream's step
        return torch.cat([_swiglu(x, expert_weights, expert, product) for expert in ids[0].tolist()])[None]
    pairs = ids.flatten()  # [T * k]
    order = pairs.argsort(stable=True)
    counts = torch.bincount(pairs, minlength=len(expert_weights.down)).tolist()
    rows = x.index_select(0, order // top_k).split(counts)  # E of [count, H]
    outputs = [_swiglu(rows[expert], expert_weights, expert, product) for expert, count in enumerate(counts) if count]
    # The outputs go back to the order of the pairs, so that no sum over k depends on the rest of the batch.
    return x.new_empty(tokens * top_k, x.shape[-1]).index_copy_(0, order, torch.cat(outputs)).view(tokens, top_k, -1)


def _swiglu(x: Tensor, expert_weights: ExpertWeights, expert: int, product: Linear) -> Tensor:
    """Computes activation(x w1, x w3) w2, where the weights have a bias or none."""
    gate, up = _biased(product(x, expert_weights.gate_up[expert]), expert_weights.gate_up_bias, expert).chunk(2, dim=-1)
    inner = activated(gate, up, expert_weights.activation)
    return _biased(product(inner, expert_weights.down[expert]), expert_weights.down_bias, expert)


def activated(gate: Tensor, up: Tensor, activation: Swiglu) -> Tensor:
    """Returns what Swiglu describes, in the shape of gate and up."""
    if activation.limit is not None:
        gate, up = gate.clamp(max=activation.limit), up.clamp(-activation.limit, activation.limit)
    swish = F.silu(gate) if activation.alpha == 1 else gate * torch.sigmoid(activation.alpha * gate)
    return swish * (up + activation.shift if activation.shift else up)


def _biased(x: Tensor, biases: Tensor | None, expert: int) -> Tensor:
    return x if biases is None else x + biases[expert]


def experts_reference(x: Tensor, ids: Tensor, weights: Tensor, expert_weights: ExpertWeights) -> Tensor:
    """Takes one token and one chosen expert at a time."""
    out = torch.zeros_like(x)
    for token in range(ids.shape[0]):
        for choice in range(ids.shape[1]):
            out[token] += weights[token, choice] * _one(x[token], expert_weights, int(ids[token, choice]))
    return out


def _one(x: Tensor, expert_weights: ExpertWeights, expert: int) -> Tensor:
    """Maps x [H] to the output of one expert, [H]."""
    inner = _biased(linear_reference(x[None], expert_weights.gate_up[expert])[0], expert_weights.gate_up_bias, expert)
    gate, up = inner.chunk(2)
    activation = expert_weights.activation
    if activation.limit is not None:
        gate, up = gate.clamp(max=activation.limit), up.clamp(-activation.limit, activation.limit)
    hidden = gate * torch.sigmoid(activation.alpha * gate) * (up + activation.shift)
    return _biased(linear_reference(hidden[None], expert_weights.down[expert])[0], expert_weights.down_bias, expert)
