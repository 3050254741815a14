"""Translates the names of tensors, from those of GGUF files to those of transformers' checkpoints.

The names in the files are those of llama.cpp (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from reprlib import repr as shortened
from typing import Any

from octavo.model.config_file import ModelError
from octavo.model.gguf.architectures import Architecture
from octavo.model.gguf.file import GgufModel, StoredTensor

EMBEDDING, OUTPUT = "token_embd.weight", "output.weight"
FREQUENCIES = "rope_freqs.weight"  # config.py makes a rope type of them
_OUTSIDE = {EMBEDDING: "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight", OUTPUT: "lm_head.weight"}
_BIASED = ("attn_q", "attn_k", "attn_v")
MOST_STACKED = 1 << 14  # experts of a layer
MOST_PIECES = 1 << 20  # A longer table fills the memory.
_IN_LAYER = re.compile(r"blk\.(0|[1-9]\d{0,4})\.(\w+?)(_exps)?(?:\.(0|[1-9]\d{0,5}))?\.(weight|bias)")


@dataclass(frozen=True, slots=True)
class Piece:
    """A Piece is a tensor of a checkpoint, as a file holds it: whole, or as a share of a tensor of all experts."""

    stored: StoredTensor
    expert: int | None = None  # its place in the stored tensor; None: the piece is the whole tensor
    heads: int = 0  # whose rows lie in pairs; 0: they lie as in the checkpoint

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stored.shape if self.expert is None else self.stored.shape[1:]

    @property
    def size(self) -> int:
        """Returns its bytes in the file."""
        return self.stored.size if self.expert is None else self.stored.size // self.stored.shape[0]

    @property
    def offset(self) -> int:
        """Returns its place in the file, in bytes."""
        return self.stored.offset + self.size * (self.expert or 0)


def pieces(model: GgufModel, architecture: Architecture, config: Mapping[str, Any]) -> dict[str, Piece]:
    """Returns all tensors by their names in a checkpoint, whose config.json has the given values.

    Raises ModelError for a tensor that has no such name.
    """
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    paired = heads if architecture.pairs else {}
    found: dict[str, Piece] = {}
    for stored in model.tensors.values():
        for name, piece in _translated(stored, architecture, paired):
            if name in found:
                raise ModelError(
                    f"{stored.path} holds {shortened(stored.name)} and {shortened(found[name].stored.name)}, "
                    "which are the same weights; convert the model again."
                )
            if len(found) == MOST_PIECES:
                raise ModelError(f"{stored.path} holds more than {MOST_PIECES} matrices; download it again.")
            found[name] = piece
    return found


def _translated(
    stored: StoredTensor, architecture: Architecture, paired: Mapping[str, int]
) -> Iterator[tuple[str, Piece]]:
    """Yields a tensor's names, with the piece that each means; `paired` has the heads of roles whose rows are pairs."""
    if len(stored.shape) == 1 and stored.type.weights > 1:
        raise ModelError(
            f"{stored.path} holds the vector {shortened(stored.name)} in {stored.type.name}, and vectors are read "
            "in F32, F16 and BF16; convert the model again."
        )
    if stored.name in _OUTSIDE:
        yield _OUTSIDE[stored.name], Piece(stored)
        return
    if stored.name == FREQUENCIES:
        return
    match = _IN_LAYER.fullmatch(stored.name)
    if match is None or not (names := _in_layer(match, stored.shape, architecture)):
        raise ModelError(
            f"{stored.path} holds the tensor {shortened(stored.name)}, which models of the type "
            f"{architecture.model_type} have not; use the model's checkpoint in safetensors."
        )
    heads = paired.get(match[2], 0)
    if heads and stored.shape[0] % (2 * heads):
        raise ModelError(
            f"{stored.path} holds {shortened(stored.name)} with {stored.shape[0]} rows, which are not pairs of "
            f"{heads} heads; download it again."
        )
    for n, name in enumerate(names):
        yield name, Piece(stored, None if match[3] is None else n, heads)


def _in_layer(match: re.Match[str], shape: tuple[int, ...], architecture: Architecture) -> list[str]:
    """Returns the checkpoint's names of a layer's tensor: one, or those of all experts; none for a strange tensor."""
    layer, role, stacked, expert, suffix = match.groups()
    prefix, experts = f"model.layers.{layer}", architecture.experts or {}
    if suffix == "bias" and not (architecture.biases and role in _BIASED):
        return []
    if stacked is None and expert is None:
        return [f"{prefix}.{architecture.roles[role]}.{suffix}"] if role in architecture.roles else []
    if (
        role not in experts
        or (expert is not None and stacked is not None)
        or (stacked and (len(shape) != 3 or shape[0] > MOST_STACKED))
    ):
        return []
    numbers = range(shape[0]) if expert is None else [int(expert)]
    return [f"{prefix}.{architecture.experts_in}.{n}.{experts[role]}.{suffix}" for n in numbers]
