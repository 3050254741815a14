"""Defines small decoders that are trained from nothing: their sizes, first weights, losses and checkpoint.

They are of the Qwen3 families, because these alone can leave the weight of a single chosen expert below 1, as Switch
Transformers do (https://arxiv.org/abs/2101.03961): else nothing would teach the router of one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.model.config import ModelConfig
from octavo.model.decoder import Attention, Decoder, DecoderLayer
from octavo.model.layers import Embedding, RMSNorm, RotaryEmbedding
from octavo.model.moe import MoEBlock, Router
from octavo.model.ops.invariant import OPS, Invariance
from octavo.model.train.corpus import generator
from octavo.model.train.dense import DenseModel, FeedForward, plain
from octavo.model.train.family import QWEN3_MOE
from octavo.model.train.sparse import Choice, Routed, top
from octavo.model.train.writer import attention_tensors
from octavo.model.weights.forms import ExpertWeights
from octavo.model.weights.precision import Precision

STD = 0.02  # of first weights, as in GPT-2 and most decoders since


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes are those of a sparse decoder and of its dense twin, in which a token passes as many weights."""

    vocabulary: int
    hidden: int = 256
    layers: int = 6
    heads: int = 4
    kv_heads: int = 2
    wide: int = 1024  # of the twin's feed-forward, and of all experts together that serve a token
    experts: int = 8
    top_k: int = 2
    context: int = 1024
    end: int = 0  # the token that ends a document

    def config(self, sparse: bool) -> ModelConfig:
        """Returns the configuration of the sparse decoder, or of the dense one."""
        return ModelConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.wide // self.top_k if sparse else self.wide,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            head_dim=self.hidden // self.heads,
            num_experts=self.experts if sparse else 1,
            num_experts_per_tok=self.top_k if sparse else 1,
            dense=not sparse,
            rope_theta=1e4,
            max_position_embeddings=self.context,
            tie_word_embeddings=True,
            qk_norm="head",
            normalise_top_k=self.top_k > 1,
        )


def first_weights(config: ModelConfig, seed: int) -> dict[str, Tensor]:
    """Returns random weights. What adds to the residual stream is smaller by the root of how often that happens."""
    random = generator(seed, "first weights", config.dense)
    hidden, wide, head = config.hidden_size, config.intermediate_size, config.head_dim
    queries, keys = config.num_attention_heads * head, config.num_key_value_heads * head

    def matrix(*shape: int, gain: float = 1.0) -> Tensor:
        return torch.randn(shape, generator=random) * STD * gain

    weights = {"embedding": matrix(config.vocab_size, hidden), "norm": torch.ones(hidden)}
    small = (2 * config.num_hidden_layers) ** -0.5
    for layer in range(config.num_hidden_layers):
        own = {
            "input_norm": torch.ones(hidden),
            "qkv": matrix(queries + 2 * keys, hidden),
            "q_norm": torch.ones(head),
            "k_norm": torch.ones(head),
            "o": matrix(hidden, queries, gain=small),
            "post_norm": torch.ones(hidden),
            "gate_up": matrix(config.num_experts, 2 * wide, hidden),
            "down": matrix(config.num_experts, hidden, wide, gain=small),
        }
        own |= {} if config.dense else {"router": matrix(config.num_experts, hidden)}
        weights |= {f"{layer}.{name}": each for name, each in own.items()}
    return weights


def decoder_of(config: ModelConfig, weights: Mapping[str, Tensor]) -> Decoder:
    """Returns the decoder that these weights are; gradients flow to them."""
    embedding, ops = weights["embedding"], OPS[Invariance.NONE]
    return Decoder(
        config=config,
        device=embedding.device,
        precision=Precision.plain(torch.float32),
        ops=ops,
        embedding=Embedding(embedding, torch.float32),
        rotary=RotaryEmbedding.create(config, embedding.device),
        layers=tuple(_layer(config, weights, f"{layer}.") for layer in range(config.num_hidden_layers)),
        norm=RMSNorm.create(weights["norm"], config.rms_norm_eps),
        head=embedding,
    )


def _layer(config: ModelConfig, weights: Mapping[str, Tensor], prefix: str) -> DecoderLayer:
    own = {name.removeprefix(prefix): each for name, each in weights.items() if name.startswith(prefix)}
    norms = {name: RMSNorm.create(each, config.rms_norm_eps) for name, each in own.items() if name.endswith("norm")}
    heads = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    router = None
    if "router" in own:
        router = Router(own["router"], config.num_experts_per_tok, normalise=config.normalise_top_k)
    return DecoderLayer(
        input_norm=norms["input_norm"],
        attention=Attention(own["qkv"], own["o"], *heads, q_norm=norms["q_norm"], k_norm=norms["k_norm"]),
        post_norm=norms["post_norm"],
        moe=MoEBlock(router, ExpertWeights(own["gate_up"].unbind(0), own["down"].unbind(0))),
    )


def feed_forward(model: DenseModel, seen: list[Routed]) -> FeedForward:
    """Returns the model's own feed-forward; where it has routers, what these did is added to `seen`."""
    if model.config.dense:
        return model.own

    def compute(layer: int, x: Tensor) -> Tensor:
        block = model.decoder.layers[layer].moe
        assert block.router is not None
        logits = F.linear(x, block.router.weight)  # [T, E]
        weights, ids = top(logits, block.router.top_k) if block.router.normalise else switch(logits, block.router.top_k)
        seen.append(Routed(logits, weights, ids))
        return model.decoder.ops.experts(x, ids, weights, block.experts)

    return compute


def switch(logits: Tensor, top_k: int) -> Choice:
    """Chooses as Switch Transformers do: a chosen expert's output counts as much as it is probable."""
    weights, ids = logits.softmax(dim=-1).topk(top_k, dim=-1)
    return weights, ids


def config_json(sizes: Sizes) -> dict[str, Any]:
    """Returns the config.json of the sparse decoder."""
    config = sizes.config(sparse=True)
    return {
        "architectures": [QWEN3_MOE.architecture],
        "model_type": QWEN3_MOE.model_type,
        "vocab_size": sizes.vocabulary,
        "hidden_size": sizes.hidden,
        "intermediate_size": config.intermediate_size,
        "moe_intermediate_size": config.intermediate_size,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": sizes.context,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": True,
        "num_experts": sizes.experts,
        "num_experts_per_tok": sizes.top_k,
        "norm_topk_prob": config.normalise_top_k,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "attention_bias": False,
        "use_sliding_window": False,
        "eos_token_id": sizes.end,
        "torch_dtype": "float32",
    }


def checkpoint_tensors(decoder: Decoder) -> dict[str, Tensor]:
    """Returns all weights of a sparse decoder under the names of transformers."""
    tensors = {"model.embed_tokens.weight": decoder.embedding.table, "model.norm.weight": decoder.norm.weight}
    for index, layer in enumerate(decoder.layers):
        tensors |= attention_tensors(layer, f"model.layers.{index}")
        assert layer.moe.router is not None
        tensors[QWEN3_MOE.router(index)] = layer.moe.router.weight
        for number in range(decoder.config.num_experts):
            gate, up = plain(layer.moe.experts.gate_up[number]).chunk(2)
            for part, each in enumerate((gate, up, plain(layer.moe.experts.down[number]))):
                tensors[QWEN3_MOE.expert(index, number, part)] = each
    return tensors
