"""Writes checkpoints of random weights to measure with: `python -m benchmarks.common.checkpoint --help`.

The speed of a model depends on its shape, not on what it has learned. `sparse` is Mixtral-shaped: it has 1.517 billion
parameters, of which 427 million are active (without the embedding). `dense-total` and `dense-active` are
Mistral-shaped: one has as many parameters in all, the other as many active ones. They differ only in the width of the
feed-forward layers.
"""

import argparse
import json
import os
import struct
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice, product
from math import prod
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from tokenizers.pre_tokenizers import ByteLevel
from tqdm import tqdm

from benchmarks.common.machine import user_cache

SPECIAL = ("<unk>", "<s>", "</s>")
BOS, EOS = 1, 2
BYTES = len(SPECIAL)  # the id of the first of 256 bytes
TEMPLATE = "{% for message in messages %}{{ message.content }}\n{% endfor %}"

EXPERTS, CHOSEN, EXPERT_WIDTH = 8, 2, 3584

_COMMON: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 1024,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "hidden_act": "silu",
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "torch_dtype": "bfloat16",
}
_DENSE = {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
SHAPES: dict[str, dict[str, Any]] = {  # shape -> config.json
    "sparse": {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "intermediate_size": EXPERT_WIDTH,
        "num_local_experts": EXPERTS,
        "num_experts_per_tok": CHOSEN,
        **_COMMON,
    },
    "dense-total": {**_DENSE, "intermediate_size": EXPERTS * EXPERT_WIDTH, **_COMMON},
    "dense-active": {**_DENSE, "intermediate_size": CHOSEN * EXPERT_WIDTH, **_COMMON},
}

WEIGHTS = "model.safetensors"
ITEM = 2  # bytes of a bf16 number

ReportBytes = Callable[[int, int], None]  # bytes written, bytes in all


@dataclass(frozen=True, slots=True)
class RandomTensor:
    """A RandomTensor holds normal random numbers, whose spread keeps activations at their size in all layers."""

    name: str
    shape: tuple[int, ...]
    std: float
    mean: float = 0.0

    @property
    def nbytes(self) -> int:
        return ITEM * prod(self.shape)

    def values(self, seed: int) -> bytes:
        normal = torch.randn(self.shape, generator=torch.Generator().manual_seed(seed))
        return normal.mul_(self.std).add_(self.mean).bfloat16().view(torch.uint8).numpy().tobytes()


def tensors(config: dict[str, Any]) -> Iterator[RandomTensor]:
    """Yields everything that the checkpoint holds, in the order of its file."""
    hidden, vocab = config["hidden_size"], config["vocab_size"]
    queries = config["num_attention_heads"] * config["head_dim"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    yield RandomTensor("model.embed_tokens.weight", (vocab, hidden), 1.0)
    for n in range(config["num_hidden_layers"]):
        layer = f"model.layers.{n}"
        yield _norm(f"{layer}.input_layernorm", hidden)
        yield _matrix(f"{layer}.self_attn.q_proj", queries, hidden)
        yield _matrix(f"{layer}.self_attn.k_proj", keys, hidden)
        yield _matrix(f"{layer}.self_attn.v_proj", keys, hidden)
        yield _matrix(f"{layer}.self_attn.o_proj", hidden, queries)
        yield _norm(f"{layer}.post_attention_layernorm", hidden)
        yield from _feed_forward(config, layer)
    yield _norm("model.norm", hidden)
    yield _matrix("lm_head", vocab, hidden)


def _feed_forward(config: dict[str, Any], layer: str) -> Iterator[RandomTensor]:
    hidden, wide = config["hidden_size"], config["intermediate_size"]
    if config["model_type"] == "mistral":
        blocks = {f"{layer}.mlp": ("gate_proj", "up_proj", "down_proj")}
    else:
        sparse, count = f"{layer}.block_sparse_moe", config["num_local_experts"]
        yield _matrix(f"{sparse}.gate", count, hidden)
        blocks = {f"{sparse}.experts.{n}": ("w1", "w3", "w2") for n in range(count)}
    for block, (gate, up, down) in blocks.items():
        yield _matrix(f"{block}.{gate}", wide, hidden)
        yield _matrix(f"{block}.{up}", wide, hidden)
        yield _matrix(f"{block}.{down}", hidden, wide, gain=2.0)  # silu(gate) * up is half as large as its inputs


def _matrix(name: str, rows: int, columns: int, gain: float = 1.0) -> RandomTensor:
    return RandomTensor(f"{name}.weight", (rows, columns), gain / columns**0.5)


def _norm(name: str, size: int) -> RandomTensor:
    return RandomTensor(f"{name}.weight", (size,), 0.1, mean=1.0)


def default_directory(cache: Path, shape: str, seed: int) -> Path:
    """Returns the place of a model under the user's cache directory."""
    return cache / "octavo" / f"bench-{shape}-{seed}"


def build(directory: Path, config: dict[str, Any], seed: int, report: ReportBytes) -> Path:
    """Writes the checkpoint of a config.json, unless the directory holds that very one; returns the directory."""
    planned = list(tensors(config))
    header = _header(planned, config, seed)
    weights = directory / WEIGHTS
    if _starts_with(weights, header):  # the file has this name only when it is whole
        return directory
    directory.mkdir(parents=True, exist_ok=True)
    write_files(directory, config)
    partial = weights.with_suffix(".partial")
    with partial.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + sum(tensor.nbytes for tensor in planned))
        file.flush()
        _write_values(file.fileno(), len(header), planned, seed, report)
    partial.replace(weights)
    return directory


def _write_values(handle: int, start: int, planned: list[RandomTensor], seed: int, report: ReportBytes) -> None:
    """Writes each tensor to its place, from several threads, which hold one tensor each in memory."""
    offsets, end = [], start
    for tensor in planned:
        offsets.append(end)
        end += tensor.nbytes

    def write(index: int) -> int:
        # Neighbouring seeds give unrelated numbers: the Mersenne twister mixes the bits of its seed.
        rest = memoryview(planned[index].values(seed * 1_000_003 + index))
        written = 0
        while written < len(rest):
            written += os.pwrite(handle, rest[written:], offsets[index] + written)
        return written

    done = 0
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for size in pool.map(write, range(len(planned))):
            done += size
            report(done, end - start)


def _header(planned: list[RandomTensor], config: dict[str, Any], seed: int) -> bytes:
    """Returns the head of a safetensors file, whose metadata says what the file was made from."""
    metadata = {"format": "pt", "seed": str(seed), "config": json.dumps(config, sort_keys=True)}
    entries: dict[str, Any] = {"__metadata__": metadata}
    offset = 0
    for tensor in planned:
        end = offset + tensor.nbytes
        entries[tensor.name] = {"dtype": "BF16", "shape": tensor.shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _starts_with(path: Path, head: bytes) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(head)) == head


def write_files(directory: Path, config: dict[str, Any]) -> None:
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    documents = {
        "config.json": config,
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "chat_template": TEMPLATE,
            "clean_up_tokenization_spaces": False,
            **special,
        },
    }
    for name, document in documents.items():
        (directory / name).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    (directory / "tokenizer.json").write_text(tokenizer(config["vocab_size"]).to_str(), encoding="utf-8")


# Pairs of letters are merged, as in a learned vocabulary, so that English takes about half as many tokens as letters.
MERGES = tuple((first, second) for first in ascii_lowercase for second in ascii_lowercase)


def vocabulary(size: int) -> tuple[str, ...]:
    """Returns the tokens by id: special ones, bytes, pairs of letters, and words that no text is encoded to."""
    words = ("Ġ" + "".join(letters) for letters in product(ascii_lowercase, repeat=4))  # Ġ is a space
    alphabet = sorted(ByteLevel.alphabet())
    return tuple(islice(chain(SPECIAL, alphabet, ("".join(letters) for letters in MERGES), words), size))


def tokenizer(size: int) -> Tokenizer:
    """Returns a byte-level BPE tokenizer of at least 259 ids, in which every id decodes to a text of its own.

    An encoded text begins with <s>.
    """
    ids = {token: number for number, token in enumerate(vocabulary(size))}
    merges = [letters for letters in MERGES if "".join(letters) in ids]
    backend = Tokenizer(models.BPE(vocab=ids, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(SPECIAL))
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return backend


def obtain(shape: str, directory: Path | None = None, seed: int = 0) -> Path:
    """Returns the directory of a model of that shape, which is written, with a progress bar, if it is not there."""
    directory = directory or default_directory(user_cache(), shape, seed)
    with tqdm(desc=f"{shape} model", unit="B", unit_scale=True, dynamic_ncols=True, disable=None) as bar:

        def report(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        return build(directory, SHAPES[shape], seed, report)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.common.checkpoint",
        description="Writes a checkpoint of seeded random weights in bf16.",
    )
    parser.add_argument("directory", nargs="?", type=Path, help="write it here (default: in the user's cache)")
    parser.add_argument("--shape", choices=SHAPES, default="sparse", help="its shape (default: sparse)")
    parser.add_argument("--seed", type=int, default=0, help="the random numbers' seed (default: 0)")
    arguments = parser.parse_args()
    print(obtain(arguments.shape, arguments.directory, arguments.seed))
    return 0


if __name__ == "__main__":
    sys.exit(main())
