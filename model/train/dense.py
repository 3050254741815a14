"""Computes a frozen dense model on whole sequences, so that gradients flow through it to what is trained inside it."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.model.config import ModelConfig
from octavo.model.decoder import Attention, Decoder
from octavo.model.kernels.choice import Backend
from octavo.model.layers import RMSNorm, Rotation
from octavo.model.loading.checkpoint import ReportBytes, load_model
from octavo.model.loading.reader import Reader
from octavo.model.loading.shards import Shards
from octavo.model.ops.invariant import OPS, Invariance
from octavo.model.train.corpus import Batch
from octavo.model.weights.forms import Weight
from octavo.model.weights.precision import Precision

FeedForward = Callable[[int, Tensor], Tensor]  # maps a layer's index and its normed states [T, H] to [T, H]


def load_dense(directory: Path, config: ModelConfig, device: torch.device, report: ReportBytes) -> Decoder:
    """Loads a checkpoint as plain float32 tensors. Raises ModelError."""
    backend = Backend(device, OPS[Invariance.NONE])
    return load_model(directory, config, backend, Precision.plain(torch.float32), report)


def check_files(directory: Path) -> None:
    """Raises ModelError for weights that are missing, damaged at first sight or quantised in an unknown way."""
    with ExitStack() as stack:
        Reader.of(Shards.open(directory, stack))


@dataclass(frozen=True, slots=True)
class DenseModel:
    """A DenseModel is a decoder whose feed-forward is given from outside, layer by layer."""

    decoder: Decoder

    @property
    def config(self) -> ModelConfig:
        return self.decoder.config

    @property
    def device(self) -> torch.device:
        return self.decoder.device

    def gate_up(self, layer: int) -> Tensor:
        """Returns gate above up, [2I, H]."""
        return plain(self.decoder.layers[layer].moe.experts.gate_up[0])

    def down(self, layer: int) -> Tensor:
        """Returns the matrix [H, I]."""
        return plain(self.decoder.layers[layer].moe.experts.down[0])

    def own(self, layer: int, x: Tensor) -> Tensor:
        """Computes the feed-forward that the checkpoint has: maps x [T, H] to [T, H]."""
        gate, up = F.linear(x, self.gate_up(layer)).chunk(2, dim=-1)
        return F.linear(F.silu(gate) * up, self.down(layer))

    def states(self, tokens: Tensor, feed_forward: FeedForward) -> Tensor:
        """Returns the states behind the last layer, [B, S, H], of sequences [B, S] that begin at position 0."""
        decoder = self.decoder
        # The gradient of an index adds rows up in any order, that of an embedding always in the same one.
        x = F.embedding(tokens, decoder.embedding.table)  # [B, S, H]
        rotation = decoder.rotary.at(torch.arange(tokens.shape[1], device=tokens.device))
        for index, layer in enumerate(decoder.layers):
            x = x + attend(layer.attention, layer.input_norm(x), rotation)
            x = x + feed_forward(index, layer.post_norm(x).flatten(0, 1)).view_as(x)
        return x

    def losses(self, batch: Batch, feed_forward: FeedForward) -> Tensor:
        """Returns the cross-entropy, in nats, of each token that counts, in the order of rows and places: [N]."""
        states = self.states(batch.tokens, feed_forward)[:, :-1][batch.counted[:, 1:]]  # [N, H]
        logits = F.linear(self.decoder.norm(states), plain(self.decoder.head))  # [N, V]
        return F.cross_entropy(logits, batch.tokens[:, 1:][batch.counted[:, 1:]], reduction="none")


def attend(attention: Attention, x: Tensor, rotation: Rotation) -> Tensor:
    """Computes causal attention within each sequence: maps x [B, S, H] to [B, S, H]."""
    counts = attention.num_heads, attention.num_kv_heads, attention.num_kv_heads
    joined = F.linear(x, plain(attention.qkv), attention.qkv_bias)
    queries, keys, values = joined.unflatten(2, (-1, attention.head_dim)).split(counts, dim=2)  # [B, S, N, D]
    queries, keys = rotation(_normed(queries, attention.q_norm)), rotation(_normed(keys, attention.k_norm))
    groups = attention.num_heads // attention.num_kv_heads
    keys, values = (each.repeat_interleave(groups, dim=2) for each in (keys, values))  # [B, S, Hq, D]
    mask = _visible(x.shape[1], attention.window, x.device)
    heads = F.scaled_dot_product_attention(
        queries.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2), attn_mask=mask, is_causal=mask is None
    )  # [B, Hq, S, D]
    return F.linear(heads.transpose(1, 2).flatten(2), plain(attention.o), attention.o_bias)


def _normed(heads: Tensor, norm: RMSNorm | None) -> Tensor:
    return heads if norm is None else norm(heads)


def _visible(length: int, window: int | None, device: torch.device) -> Tensor | None:
    """Returns which keys a query sees, [S, S]; None where it sees all before it."""
    if window is None or window >= length:
        return None
    distance = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)
    return (distance >= 0) & (distance < window)


def plain(weight: Weight) -> Tensor:
    """Returns a weight that was loaded as a plain tensor."""
    assert isinstance(weight, Tensor)
    return weight
