"""Rounds a model's matrices as llama.cpp or ik_llama.cpp would: their own llama-quantize does it, through GGUF files.

The inputs of each matrix are given in a random order, so that no format finds groups that the weights were rounded in
before. A format of blocks of 256 inputs gets rows that zeros fill up to a multiple of 256, because llama-quantize would
take another format for rows of 576. The zeros do not count as weights.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import gguf
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.common.gguf_metadata import describe
from benchmarks.common.llama_programs import IK_LLAMA_CPP, LLAMA_CPP, QUANTIZE, Project, run
from octavo.model.decoder import Decoder

Programs = Mapping[Project, Path]  # -> the directory of its programs


@dataclass(frozen=True, slots=True)
class Format:
    """A Format is what llama-quantize makes of a matrix."""

    project: Project
    name: str  # for llama-quantize
    block: int = 256  # inputs
    mixed: bool = False  # the tool chooses better formats for some matrices; else all have the same
    whole: bool = False  # attention, head and embedding, too; else experts only


PEER_FORMATS = {
    "llama-q8_0": Format(LLAMA_CPP, "Q8_0", block=32),
    "llama-q5_k": Format(LLAMA_CPP, "Q5_K_S"),
    "llama-q4_1": Format(LLAMA_CPP, "Q4_1", block=32),
    "llama-q4_k": Format(LLAMA_CPP, "Q4_K_S"),
    "llama-q4_k_m": Format(LLAMA_CPP, "Q4_K_M", mixed=True),
    "llama-q4_k_m-whole": Format(LLAMA_CPP, "Q4_K_M", mixed=True, whole=True),
    "llama-q4_0": Format(LLAMA_CPP, "Q4_0", block=32),
    "ik-iq4_ks": Format(IK_LLAMA_CPP, "IQ4_KS"),
}


@dataclass(frozen=True, slots=True)
class Matrices:
    """Matrices become one tensor of a GGUF file, [out, in] or [experts, out, in]."""

    name: str  # llama.cpp's
    parts: tuple[Tensor, ...]  # [out, in] each: views of the model's own


def shuffled(inputs: int) -> Tensor:
    """Returns an order of so many inputs, which is always the same."""
    return torch.randperm(inputs, generator=torch.Generator().manual_seed(0))


def round_as(model: Decoder, form: Format, programs: Programs) -> float:
    """Rounds a float32 model in place; returns the bytes of a weight among those that were rounded."""
    matrices = [*_experts(model), *(_others(model) if form.whole else ())]
    with TemporaryDirectory() as scratch:
        source, target = Path(scratch, "float32.gguf"), Path(scratch, "rounded.gguf")
        _write(source, model, matrices, form.block)
        tool = programs[form.project] / QUANTIZE
        failure = f"{form.project.name} cannot make {form.name}"
        run([tool, *(() if form.mixed else ("--pure",)), source, target, form.name], failure)
        if form.project is LLAMA_CPP:
            size = _read(target, matrices)
        else:  # The gguf package does not know its own formats, so its tool reads them, too.
            size = 4 * target.stat().st_size / source.stat().st_size  # all matrices have the same format
            source.unlink()
            run([tool, "--allow-requantize", target, source, "F32"], failure)
            _read(source, matrices)
    if form.whole and model.config.tie_word_embeddings:
        assert isinstance(model.head, Tensor)
        model.embedding.table.copy_(model.head)
    return size


def _experts(model: Decoder) -> Iterator[Matrices]:
    for n, layer in enumerate(model.layers):
        both = [_plain(weight).chunk(2) for weight in layer.moe.experts.gate_up]
        yield Matrices(f"blk.{n}.ffn_gate_exps.weight", tuple(gate for gate, _ in both))
        yield Matrices(f"blk.{n}.ffn_up_exps.weight", tuple(up for _, up in both))
        yield Matrices(f"blk.{n}.ffn_down_exps.weight", tuple(_plain(weight) for weight in layer.moe.experts.down))


def _others(model: Decoder) -> Iterator[Matrices]:
    for n, layer in enumerate(model.layers):
        attention = layer.attention
        heads = (attention.num_heads, attention.num_kv_heads, attention.num_kv_heads)
        parts = _plain(attention.qkv).split([attention.head_dim * count for count in heads])
        for name, part in zip(("attn_q", "attn_k", "attn_v"), parts, strict=True):
            yield Matrices(f"blk.{n}.{name}.weight", (part,))
        yield Matrices(f"blk.{n}.attn_output.weight", (_plain(attention.o),))
    if model.config.tie_word_embeddings:
        yield Matrices("token_embd.weight", (_plain(model.head),))
    else:
        yield Matrices("token_embd.weight", (model.embedding.table,))
        yield Matrices("output.weight", (_plain(model.head),))


def _plain(weight: object) -> Tensor:
    assert isinstance(weight, Tensor)
    return weight


def _write(path: Path, model: Decoder, matrices: list[Matrices], block: int) -> None:
    """Writes the matrices in float32, with one tensor in memory at a time."""
    writer = gguf.GGUFWriter(path, "llama")
    describe(writer, model.config)
    for each in matrices:
        out, inputs = each.parts[0].shape
        stack = (len(each.parts),) if len(each.parts) > 1 else ()
        shape = (*stack, out, inputs + -inputs % block)
        writer.add_tensor_info(each.name, shape, np.dtype(np.float32), 4 * int(np.prod(shape)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for each in matrices:
        stacked = torch.stack(each.parts).float()
        inputs = stacked.shape[-1]
        writer.write_tensor_data(F.pad(stacked[..., shuffled(inputs)], (0, -inputs % block)).numpy())
    writer.close()


def _read(path: Path, matrices: list[Matrices]) -> float:
    """Reads the matrices back to where they came from; returns the bytes of a weight, without the zeros' bytes."""
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    nbytes, weights = 0.0, 0
    for each in matrices:
        tensor = found[each.name]
        values = torch.tensor(gguf.dequantize(tensor.data, tensor.tensor_type))
        inputs = each.parts[0].shape[1]
        stacked = values.view(len(each.parts), -1, values.shape[-1])[..., :inputs]
        for part, rounded in zip(each.parts, stacked, strict=True):
            part[:, shuffled(inputs)] = rounded.to(part.dtype)
        nbytes += int(tensor.n_bytes) * inputs / values.shape[-1]
        weights += stacked.numel()
    return nbytes / weights
