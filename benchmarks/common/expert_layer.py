"""One layer's experts alone, with the layers in turn: together their weights are far too large for any cache."""

from time import perf_counter

import torch
from torch import Tensor

from octavo.model.decoder import Decoder, DecoderLayer
from octavo.model.kernels.cpu.decoder import FusedLayer

PASSES = 2  # over all layers; the last one counts


@torch.inference_mode()
def measure(model: Decoder, tokens: int) -> tuple[float, float]:
    """Seconds of one layer and bytes of the distinct experts it reads, both the mean over all layers."""
    config = model.config
    generator = torch.Generator().manual_seed(tokens)
    x = torch.randn(tokens, config.hidden_size, generator=generator).to(model.activation_dtype)  # [T, H]
    choices = [_choose(tokens, config.num_experts, config.num_experts_per_tok, generator) for _ in model.layers]
    weights = torch.full((tokens, config.num_experts_per_tok), 1 / config.num_experts_per_tok)  # [T, k]
    for _ in range(PASSES):
        started = perf_counter()
        for layer, ids in zip(model.layers, choices, strict=True):
            _run(model, layer, x, ids, weights)
        seconds = (perf_counter() - started) / len(model.layers)
    touched = [
        experts.gate_up[expert].nbytes + experts.down[expert].nbytes
        for experts, ids in zip((layer.moe.experts for layer in model.layers), choices, strict=True)
        for expert in ids.unique().tolist()
    ]
    return seconds, sum(touched) / len(model.layers)


def _run(model: Decoder, layer: DecoderLayer, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    """As decoding does it: a fused layer has its structs at hand, and each step begins with the number of threads."""
    if isinstance(layer.fused, FusedLayer):
        layer.fused.kernels.follow_torch()
        return layer.fused.kernels.experts(x, ids, weights, layer.fused.experts)
    return model.ops.experts(x, ids, weights, layer.moe.experts)


def _choose(tokens: int, experts: int, top_k: int, generator: torch.Generator) -> Tensor:
    """Different experts for each token, all equally likely, [T, k]."""
    return torch.rand(tokens, experts, generator=generator).topk(top_k).indices
