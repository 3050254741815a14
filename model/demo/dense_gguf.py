"""Reads a dense Llama checkpoint and its tokenizer from a GGUF file."""

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from octavo.model.config import ModelError
from octavo.model.gguf.architectures import ATTENTION, DENSE

Float32 = npt.NDArray[np.float32]

# Maps llama.cpp's names, which the file uses, to the names of the dense Hugging Face checkpoint.
LAYER_NAMES = ATTENTION | DENSE
GLOBAL_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
CONTROL_TOKEN = 3  # tokenizer.ggml.token_type has this value for tokens such as <|im_end|>.


@dataclass(frozen=True, slots=True)
class DenseConfig:
    """Holds the sizes of the dense model."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    ffn: int
    context: int
    vocabulary: int
    rope_theta: float
    rms_norm_eps: float

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Holds a byte-level BPE vocabulary. A token's id is its place in `tokens`."""

    tokens: tuple[str, ...]
    merges: tuple[tuple[str, str], ...]  # in order of rank
    special: tuple[str, ...]
    bos_id: int
    eos_id: int
    unk_id: int
    pad_id: int
    chat_template: str


class GGUFSource:
    """A GGUFSource gives a dense Llama checkpoint's tensors under their Hugging Face names, dequantised on demand.

    The file is mapped into memory, not read: only a tensor that is asked for takes memory.
    """

    def __init__(self, path: Path) -> None:
        self._gguf = _import_gguf()
        self._reader = self._gguf.GGUFReader(path)
        architecture = self._field("general.architecture")
        if architecture != "llama":
            raise ModelError(f"{path} holds a model of type {architecture!r}; give a GGUF file of a Llama model.")
        self.config = self._config()
        self._tensors = {hugging_face_name(tensor.name): tensor for tensor in self._reader.tensors}

    @property
    def names(self) -> tuple[str, ...]:
        """Returns the names of all tensors, in the order of the file."""
        return tuple(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns the shape of a tensor: [out, in] for a matrix, [hidden] for a norm."""
        return tuple(int(size) for size in reversed(self._tensors[name].shape))  # GGUF begins with the innermost size.

    def tensor(self, name: str) -> Float32:
        """Returns the tensor in fp32, in the shape that `shape` returns, with q and k in Hugging Face's row order."""
        stored = self._tensors[name]
        weight = np.asarray(self._gguf.dequantize(stored.data, stored.tensor_type), np.float32)
        weight = weight.reshape(self.shape(name))
        if name.endswith("q_proj.weight"):
            return unpermute(weight, self.config.heads)
        if name.endswith("k_proj.weight"):
            return unpermute(weight, self.config.kv_heads)
        return weight

    def vocabulary(self) -> Vocabulary:
        tokens = tuple(self._field("tokenizer.ggml.tokens"))
        types = self._field("tokenizer.ggml.token_type")
        merges = (merge.split(" ") for merge in self._field("tokenizer.ggml.merges"))
        return Vocabulary(
            tokens=tokens,
            merges=tuple((left, right) for left, right in merges),
            special=tuple(token for token, kind in zip(tokens, types, strict=True) if kind == CONTROL_TOKEN),
            bos_id=self._field("tokenizer.ggml.bos_token_id"),
            eos_id=self._field("tokenizer.ggml.eos_token_id"),
            unk_id=self._field("tokenizer.ggml.unknown_token_id"),
            pad_id=self._field("tokenizer.ggml.padding_token_id"),
            chat_template=self._field("tokenizer.chat_template"),
        )

    def _config(self) -> DenseConfig:
        return DenseConfig(
            hidden=self._field("llama.embedding_length"),
            layers=self._field("llama.block_count"),
            heads=self._field("llama.attention.head_count"),
            kv_heads=self._field("llama.attention.head_count_kv"),
            ffn=self._field("llama.feed_forward_length"),
            context=self._field("llama.context_length"),
            vocabulary=self._field("llama.vocab_size"),
            rope_theta=self._field("llama.rope.freq_base"),
            # The file holds fp32, where 1e-5 is 9.99999975e-06. Rounding to six digits restores the value.
            rms_norm_eps=float(f"{self._field('llama.attention.layer_norm_rms_epsilon'):.6g}"),
        )

    def _field(self, key: str) -> Any:
        field = self._reader.get_field(key)
        if field is None:
            raise ModelError(f"The GGUF file has no {key!r}; it is not one that can be converted.")
        return field.contents()


def hugging_face_name(name: str) -> str:
    """Translates a name: blk.3.attn_q.weight becomes model.layers.3.self_attn.q_proj.weight."""
    stem = name.removesuffix(".weight")
    if stem in GLOBAL_NAMES:
        return f"{GLOBAL_NAMES[stem]}.weight"
    block, _, role = stem.removeprefix("blk.").partition(".")
    if role not in LAYER_NAMES:
        raise ModelError(f"The GGUF file holds an unexpected tensor, {name!r}; it is not one that can be converted.")
    return f"model.layers.{block}.{LAYER_NAMES[role]}.weight"


def unpermute(weight: Float32, heads: int) -> Float32:
    """Undoes llama.cpp's reordering of the rows of q and k.

    llama.cpp rotates neighbouring rows (0 1)(2 3). Hugging Face rotates rows that are half a head apart. This is the
    order of a head of 6 rows:

        Hugging Face    a0 a1 a2 b0 b1 b2     rotates (a0 b0)(a1 b1)(a2 b2)
        llama.cpp       a0 b0 a1 b1 a2 b2
    """
    rows, columns = weight.shape
    halves = weight.reshape(heads, rows // heads // 2, 2, columns)  # [heads, D / 2, a|b, in]
    return halves.swapaxes(1, 2).reshape(rows, columns)


def _import_gguf() -> ModuleType:
    try:
        import gguf
    except ImportError as error:
        raise ModelError(
            "Converting the default model needs the package gguf; run: python -m pip install 'octavo[demo]'"
        ) from error
    return gguf
