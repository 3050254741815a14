"""Peers get all inputs in another order and in whole blocks, and what they make of them comes back to its place.

Here llama-quantize is a script: it writes Q8_0 whatever it is asked for, and reads it again when it is asked for F32.
"""

import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from benchmarks.common.llama_programs import IK_LLAMA_CPP, LLAMA_CPP, QUANTIZE, Project
from benchmarks.quality import peer_formats
from benchmarks.quality.peer_formats import PEER_FORMATS, Format, round_as, shuffled
from benchmarks.quality.weight_types import experts, load_as
from tests.tiny import write_tiny_checkpoint

TOOL = f"""#!{sys.executable}
import sys, gguf, pathlib
*flags, source, target, name = sys.argv[1:]
kind = gguf.GGMLQuantizationType["F32" if name == "F32" else "Q8_0"]
writer = gguf.GGUFWriter(target, "llama")
shapes = []
for tensor in gguf.GGUFReader(source).tensors:
    values = gguf.dequantize(tensor.data, tensor.tensor_type)
    writer.add_tensor(tensor.name, gguf.quantize(values, kind), raw_dtype=kind)
    shapes.append((tensor.name, values.shape))
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
with open(pathlib.Path(__file__).parent / "asked", "a") as file:
    print(name, *flags, dict(shapes), file=file)
"""
PROGRAMS = (LLAMA_CPP, IK_LLAMA_CPP)


@pytest.fixture
def tool(tmp_path: Path) -> Path:
    path = tmp_path / QUANTIZE
    path.write_text(TOOL)
    path.chmod(0o755)
    return tmp_path


def in_groups(dense: torch.Tensor) -> torch.Tensor:
    """Rounds to Q8_0 in groups of inputs in the other order; zeros fill the last group up."""
    order = shuffled(dense.shape[1])
    padded = torch.nn.functional.pad(dense[:, order], (0, -dense.shape[1] % 32)).numpy()
    q8_0 = gguf.GGMLQuantizationType.Q8_0
    rounded = gguf.dequantize(gguf.quantize(padded, q8_0), q8_0)
    result = torch.empty_like(dense)
    result[:, order] = torch.from_numpy(rounded)[:, : dense.shape[1]]
    return result


@pytest.mark.parametrize("project", PROGRAMS)
@pytest.mark.parametrize("block", [32, 256])
def test_experts_are_rounded_by_the_tool(project: Project, block: int, tmp_path: Path, tool: Path) -> None:
    directory = write_tiny_checkpoint(tmp_path / "model")
    exact, model = load_as(directory, "float32", "none"), load_as(directory, "float32", "none")
    size = round_as(model, Format(project, "ANY", block), {project: tool})
    # ik_llama.cpp's is that of the whole file, of which a tiny one's head is no small part.
    assert size == 34 / 32 if project is LLAMA_CPP else size == pytest.approx(34 / 32, rel=0.5)
    for before, after in zip(experts(exact), experts(model), strict=True):
        torch.testing.assert_close(after, in_groups(before), rtol=0, atol=0)
    assert torch.equal(model.layers[0].attention.qkv, exact.layers[0].attention.qkv)
    asked = (tool / "asked").read_text().splitlines()
    assert asked[0].startswith("ANY --pure") and ("F32" in asked[-1]) == (project is IK_LLAMA_CPP)
    assert f"{block})" in asked[0].replace("512)", "256)")


def test_a_whole_file_has_attention_and_head(tmp_path: Path, tool: Path) -> None:
    directory = write_tiny_checkpoint(tmp_path / "model")
    exact, model = load_as(directory, "float32", "none"), load_as(directory, "float32", "none")
    round_as(model, Format(LLAMA_CPP, "ANY", 32, mixed=True, whole=True), {LLAMA_CPP: tool})
    asked = (tool / "asked").read_text()
    assert "--pure" not in asked
    for name in ("blk.1.attn_k.weight", "blk.0.attn_output.weight", "token_embd.weight"):
        assert name in asked
    for before, after in zip(exact.matrices(), model.matrices(), strict=True):
        assert isinstance(before, torch.Tensor)
        assert torch.equal(after, in_groups(before))
    assert not torch.equal(model.embedding.table, exact.embedding.table)


def test_orders_are_always_the_same() -> None:
    assert torch.equal(shuffled(300), shuffled(300))
    assert np.array_equal(shuffled(300).sort().values, np.arange(300))


def test_a_tool_that_fails_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / QUANTIZE).write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / QUANTIZE).chmod(0o755)
    model = load_as(write_tiny_checkpoint(tmp_path / "model"), "float32", "none")
    with pytest.raises(SystemExit, match=r"ik_llama.cpp cannot make IQ4_KS"):
        round_as(model, PEER_FORMATS["ik-iq4_ks"], {IK_LLAMA_CPP: tmp_path})


def test_blocks_are_those_of_the_formats() -> None:
    for form in PEER_FORMATS.values():
        assert form.block == (256 if "_K" in form.name else 32), form.name
    assert peer_formats.PEER_FORMATS["llama-q4_k_m"].mixed
