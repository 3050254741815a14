"""Converts a Mixtral or Mistral checkpoint to a GGUF file in F16, which llama.cpp reads.

Tensor names are those of llama.cpp's architecture "llama". Norms and routers stay in F32, as in its own converter.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import gguf
import torch
from safetensors import safe_open
from torch import Tensor

from benchmarks.common.checkpoint import SPECIAL, ReportBytes
from benchmarks.common.gguf_metadata import describe
from octavo.model.config import ModelConfig
from octavo.model.demo.dense_gguf import GLOBAL_NAMES, LAYER_NAMES

EXPERTS = "block_sparse_moe.experts"
SPARSE = {name: source for name, source in LAYER_NAMES.items() if not source.startswith("mlp.")} | {
    "ffn_gate_inp": "block_sparse_moe.gate"
}
STACKED = {"ffn_gate_exps": "w1", "ffn_up_exps": "w3", "ffn_down_exps": "w2"}

LoadTensor = Callable[[str], Tensor]  # from a name in the checkpoint


@dataclass(frozen=True, slots=True)
class Entry:
    """An Entry is one tensor of the GGUF file, made of one tensor of the checkpoint or of one for each expert."""

    name: str
    sources: tuple[str, ...]
    shape: tuple[int, ...]
    heads: int | None = None  # for a matrix whose outputs are rotated: its heads

    @property
    def dtype(self) -> torch.dtype:
        single = len(self.shape) == 1 or "ffn_gate_inp" in self.name
        return torch.float32 if single else torch.float16

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize

    def load(self, load_tensor: LoadTensor) -> Tensor:
        parts = [load_tensor(source).to(self.dtype) for source in self.sources]
        whole = parts[0] if len(self.shape) == len(parts[0].shape) else torch.stack(parts)
        return whole if self.heads is None else interleave(whole, self.heads)


@dataclass(frozen=True, slots=True)
class WeightBytes:
    """WeightBytes are the bytes of a weight, on average."""

    experts: float
    linears: float  # attention and head

    @classmethod
    def of(cls, file: Path) -> "WeightBytes":
        """Reads them from a GGUF file, in which llama-quantize mixes types."""
        held: dict[str, list[tuple[int, int]]] = {"experts": [], "linears": []}
        for tensor in gguf.GGUFReader(file).tensors:
            if len(tensor.shape) == 1 or "ffn_gate_inp" in tensor.name:
                continue
            if ".ffn_" in tensor.name:
                held["experts"].append((int(tensor.n_bytes), int(tensor.n_elements)))
            elif tensor.name == "output.weight" or ".attn_" in tensor.name:
                held["linears"].append((int(tensor.n_bytes), int(tensor.n_elements)))
        return cls(**{name: sum(a for a, _ in sizes) / sum(b for _, b in sizes) for name, sizes in held.items()})


def interleave(matrix: Tensor, heads: int) -> Tensor:
    """Reorders a matrix [heads * D, in]: llama.cpp rotates neighbouring outputs together, Octavo those D / 2 apart.

    A head's outputs 0 1 2 3 | 4 5 6 7 become 0 4 1 5 2 6 3 7.
    """
    halves = matrix.view(heads, 2, -1, matrix.shape[1])  # [heads, 2, D / 2, in]
    return halves.transpose(1, 2).reshape(matrix.shape)


def convert(directory: Path, report: ReportBytes) -> Path:
    """Returns the F16 file beside the checkpoint, written if it is missing or older; it appears when it is whole."""
    target = directory / "model-F16.gguf"
    source = directory / "model.safetensors"
    if target.is_file() and target.stat().st_mtime > source.stat().st_mtime:
        return target
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    partial = target.with_suffix(".partial")
    with safe_open(source, framework="pt") as file:
        planned = list(entries(config, lambda name: tuple(file.get_slice(name).get_shape())))
        writer = gguf.GGUFWriter(partial, "llama")
        writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
        describe(writer, ModelConfig.from_pretrained(directory))
        _add_tokenizer(writer, directory)
        _write(writer, planned, file.get_tensor, report)
    partial.replace(target)
    return target


def entries(config: dict[str, Any], shape: Callable[[str], tuple[int, ...]]) -> Iterator[Entry]:
    """Yields everything that the GGUF file holds, in its order; `shape` returns that of a tensor of the checkpoint."""
    experts = config.get("num_local_experts", 0)
    rotated = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    for name, source in GLOBAL_NAMES.items():
        yield Entry(f"{name}.weight", (f"{source}.weight",), shape(f"{source}.weight"))
    for n in range(config["num_hidden_layers"]):
        layer, block = f"model.layers.{n}", f"blk.{n}"
        for name, source in (SPARSE if experts else LAYER_NAMES).items():
            full = f"{layer}.{source}.weight"
            yield Entry(f"{block}.{name}.weight", (full,), shape(full), rotated.get(name))
        for name, source in STACKED.items() if experts else ():
            sources = tuple(f"{layer}.{EXPERTS}.{expert}.{source}.weight" for expert in range(experts))
            yield Entry(f"{block}.{name}.weight", sources, (experts, *shape(sources[0])))


def _add_tokenizer(writer: gguf.GGUFWriter, directory: Path) -> None:
    model = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if token in SPECIAL else gguf.TokenType.NORMAL for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in model["merges"]])
    unknown, bos, eos = (model["vocab"][token] for token in SPECIAL)
    writer.add_unk_token_id(unknown)
    writer.add_bos_token_id(bos)
    writer.add_eos_token_id(eos)
    writer.add_add_bos_token(True)


def _write(writer: gguf.GGUFWriter, planned: list[Entry], load_tensor: LoadTensor, report: ReportBytes) -> None:
    """Writes the tensors, with one in memory at a time."""
    for entry in planned:
        kind = torch.empty(0, dtype=entry.dtype).numpy().dtype
        writer.add_tensor_info(entry.name, entry.shape, kind, entry.nbytes)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    done, total = 0, sum(entry.nbytes for entry in planned)
    for entry in planned:
        writer.write_tensor_data(entry.load(load_tensor).contiguous().numpy())
        done += entry.nbytes
        report(done, total)
    writer.close()
