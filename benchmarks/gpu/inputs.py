"""Makes Mixtral with random weights on the device, in seconds: in its true shape, or with as many layers as fit."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from octavo.model.config import ModelConfig
from octavo.model.decoder import Attention, Decoder, DecoderLayer
from octavo.model.kernels.choice import select_backend
from octavo.model.layers import Embedding, RMSNorm, RotaryEmbedding
from octavo.model.moe import MoEBlock, Router
from octavo.model.weights.forms import ExpertWeights, Weight
from octavo.model.weights.memory import zeros_on
from octavo.model.weights.precision import Precision
from octavo.model.weights.row_major import RowMajorWeight
from octavo.model.weights.stack import Stack

MIXTRAL_8X7B = ModelConfig(
    vocab_size=32000,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    num_experts=8,
    num_experts_per_tok=2,
    max_position_embeddings=32768,
)
SMALL = replace(  # small enough for Triton's interpreter
    MIXTRAL_8X7B,
    vocab_size=256,
    hidden_size=64,
    intermediate_size=64,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    num_experts=4,
    max_position_embeddings=512,
)

Kind = torch.dtype | type[RowMajorWeight]


def experts_of(config: ModelConfig, kind: Kind, device: torch.device) -> ExpertWeights:
    """Returns one layer's random experts. Inputs of unit variance give outputs of unit variance."""
    shapes = (2 * config.intermediate_size, config.hidden_size), (config.hidden_size, config.intermediate_size)
    gate_up, down = (_stack(config.num_experts, shape, kind, device) for shape in shapes)
    return ExpertWeights(gate_up, down)


def copy_of(experts: ExpertWeights) -> ExpertWeights:
    """Returns the same weights in other memory, so that no cache holds them for a second layer."""
    return ExpertWeights(_copied(experts.gate_up), _copied(experts.down))


def matrix_of(shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Returns a random matrix [out, in]."""
    return torch.empty(shape, dtype=dtype, device=device).normal_(std=shape[1] ** -0.5)


def layers_that_fit(config: ModelConfig, precision: Precision, available: int) -> int:
    """Returns the layers that fit in that many bytes, beside the embedding and the head; at least one."""
    rest = precision.weight_bytes(replace(config, num_hidden_layers=0))
    layer = precision.weight_bytes(replace(config, num_hidden_layers=1)) - rest
    return max(1, min(config.num_hidden_layers, (available - rest) // layer))


def random_model(
    config: ModelConfig, dtype: torch.dtype, experts: Kind, device: torch.device, done: Callable[[], object]
) -> Decoder:
    """Returns a model whose weights are in `dtype`, except the experts; calls done() after each layer.

    Experts are quantised once and copied to all layers. This does not change the time that a step takes.
    """
    first = experts_of(config, experts, device)

    def layer(index: int) -> DecoderLayer:
        heads = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        width = config.num_attention_heads * config.head_dim
        rows = width + 2 * config.num_key_value_heads * config.head_dim
        qkv, o = matrix((rows, config.hidden_size)), matrix((config.hidden_size, width))
        router = Router(matrix((config.num_experts, config.hidden_size)), config.num_experts_per_tok)
        moe = MoEBlock(router, copy_of(first) if index else first)
        done()
        return DecoderLayer(norm(), Attention(qkv, o, *heads), norm(), moe)

    def matrix(shape: tuple[int, int]) -> Tensor:
        return matrix_of(shape, dtype, device)

    def norm() -> RMSNorm:
        return RMSNorm.create(torch.ones(config.hidden_size, dtype=dtype, device=device), config.rms_norm_eps)

    return Decoder(
        config=config,
        device=device,
        precision=Precision(dtype, experts, dtype),
        ops=select_backend(config, device).ops,
        embedding=Embedding(matrix((config.vocab_size, config.hidden_size)).mul_(config.hidden_size**0.5), dtype),
        rotary=RotaryEmbedding.create(config, device),
        layers=tuple(map(layer, range(config.num_hidden_layers))),
        norm=norm(),
        head=matrix((config.vocab_size, config.hidden_size)),
    )


def _stack(count: int, shape: tuple[int, int], kind: Kind, device: torch.device) -> tuple[Weight, ...]:
    if isinstance(kind, torch.dtype):
        whole = torch.empty(count, *shape, dtype=kind, device=device)
        for matrix in whole:
            matrix.normal_(std=shape[1] ** -0.5)
        return whole.unbind()
    weights = kind.stack(count, shape, zeros_on(device))
    for weight in weights:
        weight.fill(matrix_of(shape, torch.float32, device), 0)
    return weights


def _copied(weights: tuple[Weight, ...]) -> tuple[Weight, ...]:
    first = weights[0]
    if not isinstance(first, RowMajorWeight):
        return Stack.of(weights).quants.clone().unbind()
    copies = type(first).stack(len(weights), first.shape, zeros_on(first.quants.device))
    for copy, weight in zip(copies, weights, strict=True):
        assert isinstance(weight, RowMajorWeight)
        for part, original in zip(copy.tensors().values(), weight.tensors().values(), strict=True):
            part.copy_(original)
    return copies
