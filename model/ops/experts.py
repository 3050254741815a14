"""experts(x, ids, weights, expert_weights): SwiGLU experts, each token through the ones its router chose."""

import torch
import torch.nn.functional as F
from torch import Tensor

from model.ops.linear import Linear, linear, linear_reference
from model.quantization import ExpertWeights


def experts(x: Tensor, ids: Tensor, weights: Tensor, expert_weights: ExpertWeights) -> Tensor:
    """x [T, H], ids [T, k], weights [T, k] float32 -> [T, H]."""
    if len(expert_weights.down) == 1:  # a dense layer: all rows at once, as they are
        return (weights * _swiglu(x, expert_weights, 0, linear)).to(x.dtype)
    if ids.shape[0] == 1:  # nothing to sort, and sorting would cost a tenth of a lone stream's step
        return _one_token(x, ids, weights, expert_weights)
    chosen = choose(x, ids, expert_weights, linear)
    return torch.bmm(weights[:, None, :], chosen.float()).squeeze(1).to(x.dtype)


def choose(x: Tensor, ids: Tensor, expert_weights: ExpertWeights, product: Linear) -> Tensor:
    """x [T, H], ids [T, k] -> each token's output of each expert it chose, [T, k, H].

    The T * k (token, choice) pairs are sorted by expert; each expert that has any multiplies them at once:

        ids    [[2, 0],   pairs  t0->2 t0->0 t1->0 t1->1    order   1    2    3    0
                [0, 1]]                                     expert  0    0    1    2
                                                            token   t0   t1   t1   t0
    """
    tokens, top_k = ids.shape
    pairs = ids.flatten()  # [T * k]
    order = pairs.argsort(stable=True)
    counts = torch.bincount(pairs, minlength=len(expert_weights.down)).tolist()
    rows = x.index_select(0, order // top_k).split(counts)  # E of [count, H]
    outputs = [_swiglu(rows[expert], expert_weights, expert, product) for expert, count in enumerate(counts) if count]
    # Back in the order of the pairs, so that the sum over k never depends on who else is in the batch.
    return x.new_empty(tokens * top_k, x.shape[-1]).index_copy_(0, order, torch.cat(outputs)).view(tokens, top_k, -1)


def _one_token(x: Tensor, ids: Tensor, weights: Tensor, expert_weights: ExpertWeights) -> Tensor:
    chosen = [_swiglu(x, expert_weights, expert, linear) for expert in ids[0].tolist()]
    return (weights @ torch.cat(chosen).float()).to(x.dtype)  # [1, H]


def _swiglu(x: Tensor, expert_weights: ExpertWeights, expert: int, product: Linear) -> Tensor:
    """silu(x w1) * (x w3), times w2 (https://arxiv.org/abs/2002.05202)."""
    gate, up = product(x, expert_weights.gate_up[expert]).chunk(2, dim=-1)
    return product(F.silu(gate).mul_(up), expert_weights.down[expert])


def experts_reference(x: Tensor, ids: Tensor, weights: Tensor, expert_weights: ExpertWeights) -> Tensor:
    """One token and one choice at a time."""
    out = torch.zeros_like(x)
    for token in range(ids.shape[0]):
        for choice in range(ids.shape[1]):
            expert = int(ids[token, choice])
            gate, up = linear_reference(x[token : token + 1], expert_weights.gate_up[expert]).chunk(2, dim=-1)
            hidden = gate * torch.sigmoid(gate) * up
            out[token] += weights[token, choice] * linear_reference(hidden, expert_weights.down[expert])[0]
    return out
