"""The GGUF file holds the checkpoint's own numbers, under llama.cpp's names and in its order of rotated rows."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGUFReader
from safetensors.torch import load_file

from benchmarks.common.checkpoint import SHAPES, WEIGHTS, build
from benchmarks.peers.gguf_file import WeightBytes, convert, interleave
from tests.benchmarks.common.support import SMALL_SHAPE


def written(directory: Path, shape: str) -> tuple[GGUFReader, dict[str, torch.Tensor]]:
    build(directory, SHAPES[shape] | SMALL_SHAPE, 0, lambda done, total: None)
    return GGUFReader(convert(directory, lambda done, total: None)), load_file(directory / WEIGHTS)


def test_rotated_pairs_become_neighbours() -> None:
    matrix = torch.arange(16.0)[:, None]  # two heads of eight
    assert interleave(matrix, 2).flatten().tolist() == [0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15]


def test_every_tensor_of_a_sparse_model(tmp_path: Path) -> None:
    reader, stored = written(tmp_path, "sparse")
    found = {tensor.name: tensor.data for tensor in reader.tensors}
    assert len(found) == 3 + 2 * (6 + 1 + 3)
    assert sum(data.size for data in found.values()) == sum(tensor.numel() for tensor in stored.values())
    np.testing.assert_array_equal(found["output.weight"], stored["lm_head.weight"].half())
    router = stored["model.layers.1.block_sparse_moe.gate.weight"].float()
    np.testing.assert_array_equal(found["blk.1.ffn_gate_inp.weight"], router)
    for expert in range(8):
        w2 = stored[f"model.layers.1.block_sparse_moe.experts.{expert}.w2.weight"].half()
        np.testing.assert_array_equal(found["blk.1.ffn_down_exps.weight"][expert], w2)
    keys = stored["model.layers.0.self_attn.k_proj.weight"].half()
    np.testing.assert_array_equal(found["blk.0.attn_k.weight"], interleave(keys, 2))


def test_a_dense_model_has_llamas_names(tmp_path: Path) -> None:
    reader, stored = written(tmp_path, "dense-active")
    found = {tensor.name: tensor.data for tensor in reader.tensors}
    np.testing.assert_array_equal(found["blk.0.ffn_up.weight"], stored["model.layers.0.mlp.up_proj.weight"].half())
    assert "llama.expert_count" not in reader.fields


def test_what_the_reader_must_know(tmp_path: Path) -> None:
    reader, _ = written(tmp_path, "sparse")
    values = {name: field.contents() for name, field in reader.fields.items()}
    assert values["general.architecture"] == "llama"
    assert values["llama.expert_used_count"] == 2
    assert values["llama.attention.head_count_kv"] == 2
    assert values["llama.rope.freq_base"] == pytest.approx(1e6)
    assert values["tokenizer.ggml.eos_token_id"] == 2
    assert len(values["tokenizer.ggml.tokens"]) == SMALL_SHAPE["vocab_size"]


def test_bytes_of_a_weight(tmp_path: Path) -> None:
    build(tmp_path, SHAPES["sparse"] | SMALL_SHAPE, 0, lambda done, total: None)
    file = convert(tmp_path, lambda done, total: None)
    assert WeightBytes.of(file) == WeightBytes(experts=2.0, linears=2.0)
    writer, q8_0 = gguf.GGUFWriter(tmp_path / "mixed.gguf", "llama"), gguf.GGMLQuantizationType.Q8_0
    for name in ("blk.0.ffn_up_exps.weight", "blk.0.attn_q.weight", "output.weight", "token_embd.weight"):
        rows = np.ones((2, 64), np.float32)
        quantised = gguf.quantize(rows, q8_0) if name == "output.weight" else rows
        writer.add_tensor(name, quantised, raw_dtype=q8_0 if name == "output.weight" else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert WeightBytes.of(tmp_path / "mixed.gguf") == WeightBytes(experts=4.0, linears=(4 + 34 / 32) / 2)


def test_it_is_written_once(tmp_path: Path) -> None:
    written(tmp_path, "sparse")
    reports: list[int] = []
    convert(tmp_path, lambda done, total: reports.append(done))
    assert reports == []
