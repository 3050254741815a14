"""A model from a GGUF file computes what the same weights compute from safetensors."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from safetensors.torch import load_file, save_file

from octavo.model.config import ModelConfig, ModelError
from octavo.model.decoder import Decoder
from octavo.model.gguf.companion import Order, directory_for
from octavo.model.gguf.handle import GgufHandle
from octavo.model.kernels.cpu.library import library
from octavo.model.prepared.source import Source
from octavo.model.weights.tiles import TiledWeight
from tests.model.checkpoints import load
from tests.model.gguf.writing import EXPERT, LAYER, OUTSIDE, VOCABULARY, add_value, written
from tests.model.loading.test_takeover import as_plain
from tests.model.pages import Pages
from tests.model.test_families import greedy, oracle
from tests.tiny import write_tiny_checkpoint

TINY = {"vocab_size": VOCABULARY, "hidden_size": 256, "intermediate_size": 256, "head_dim": 64}
PROMPT = [5, 99, 7, 255, 130, 12, 12, 64]


def q4_k_m(name: str) -> str:
    """Mixes types as llama.cpp's Q4_K_M does for eight experts."""
    if name == "output.weight":
        return "Q6_K"
    if "attn_k" in name or "attn_v" in name:
        return "Q8_0"
    if "attn_output" in name:
        return "Q5_K"
    return "Q6_K" if "blk.0.ffn_down" in name else "Q4_K"


def of(kind: str) -> Callable[[str], str]:
    return lambda name: kind


def tiny(directory: Path, **overrides: Any) -> Path:
    return write_tiny_checkpoint(directory, **TINY | overrides)


def dequantised(checkpoint: Path, file: Path) -> Path:
    """Writes the checkpoint again with the weights of the file, as the package gguf reads them."""
    config = json.loads((checkpoint / "config.json").read_text())
    tensors = load_file(checkpoint / "model.safetensors")
    again = checkpoint.with_name("dequantised")
    again.mkdir()
    (again / "config.json").write_text(json.dumps(config))
    read = Read(file, config)
    save_file({name: read.checkpoints(name).contiguous() for name in tensors}, again / "model.safetensors")
    return again


class Read:
    """Reads a GGUF file with the package gguf, under a checkpoint's names."""

    def __init__(self, file: Path, config: dict[str, Any]) -> None:
        self.found = {each.name: each for each in gguf.GGUFReader(file).tensors}
        heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
        self.heads = heads if config["model_type"] in ("mixtral", "mistral", "llama") else {}

    def weight(self, name: str) -> torch.Tensor:
        stored = self.found[name]
        values = gguf.dequantize(stored.data, stored.tensor_type)
        return torch.from_numpy(np.array(values, np.float32).reshape([int(n) for n in reversed(stored.shape)]))

    def rotated(self, name: str, heads: int) -> torch.Tensor:
        rows = self.weight(name)
        length = len(rows) // heads
        return rows[[h * length + n for h in range(heads) for part in (0, 1) for n in range(part, length, 2)]]

    def checkpoints(self, name: str) -> torch.Tensor:
        *parts, suffix = name.split(".")
        if "layers" not in parts:
            return self.weight(f"{OUTSIDE['.'.join(parts)]}.{suffix}")
        layer, role = f"blk.{parts[2]}", ".".join(parts[3:])
        if "experts" in parts:
            projection, number = f"{layer}.ffn_{EXPERT[parts[-1]]}", parts[-2]
            merged = f"{projection}_exps.weight"
            return (
                self.weight(merged)[int(number)]
                if merged in self.found
                else self.weight(f"{projection}.{number}.weight")
            )
        heads = self.heads.get(parts[-1])
        own = f"{layer}.{LAYER[role]}.{suffix}"
        return self.rotated(own, heads) if heads else self.weight(own)


def served(file: Path, cache: Path) -> Path:
    return directory_for(Order(file), cache)


@pytest.mark.parametrize("merged", [True, False])
@pytest.mark.parametrize("types", [q4_k_m, of("F32"), of("F16"), of("BF16"), of("Q4_0"), of("Q8_0"), of("Q5_1")])
def test_logits_are_those_of_the_dequantised_weights(tmp_path: Path, types: Callable[[str], str], merged: bool) -> None:
    checkpoint = tiny(tmp_path / "tiny")
    file = written(checkpoint, types, merged)
    ours = Pages(load(served(file, tmp_path / "cache")), 1, 16).prompt(PROMPT)
    theirs = Pages(load(dequantised(checkpoint, file)), 1, 16).prompt(PROMPT)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    original = Pages(load(checkpoint), 1, 16).prompt(PROMPT)
    assert types("output.weight") == "F32" or (ours - original).abs().max() > 1e-4  # The types did round something.


def test_greedy_answers_are_those_of_the_dequantised_weights(tmp_path: Path) -> None:
    checkpoint = tiny(tmp_path / "tiny")
    file = written(checkpoint, q4_k_m)
    models = load(served(file, tmp_path / "cache")), load(dequantised(checkpoint, file))
    ours, theirs = (greedy(Pages(model, 1, 80), 0, PROMPT, 64) for model in models)
    assert ours == theirs


def without_q6_k(name: str) -> str:
    """Mixes types so that slices of one matrix differ, and one has no minima."""
    if "attn_k" in name or "attn_v" in name:
        return "Q8_0"
    return "Q5_K" if "attn_output" in name or "ffn_up" in name else "Q4_K"


@pytest.mark.parametrize("types", [without_q6_k, of("Q4_0"), of("Q4_1"), of("Q8_0")])
def test_weights_are_held_as_they_are(tmp_path: Path, types: Callable[[str], str]) -> None:
    checkpoint = tiny(tmp_path / "tiny")
    file = written(checkpoint, types)
    kept, plain = load(served(file, tmp_path / "cache"), "float32", "auto"), load(dequantised(checkpoint, file))
    for ours, theirs in zip(matrices(kept), matrices(plain), strict=True):
        assert isinstance(ours, TiledWeight) and isinstance(theirs, torch.Tensor)
        assert torch.equal(ours.dense(), theirs)
    expected = Pages(plain, 1, 16).prompt(PROMPT)
    torch.testing.assert_close(Pages(as_plain(kept), 1, 16).prompt(PROMPT), expected, rtol=0, atol=1e-3)
    # The C kernels round activations to 8 bits; a token whose experts were in doubt may get others.
    fast = Pages(kept, 1, 16).prompt(PROMPT)
    lost = (fast - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert lost.median() < 0.03
    assert (lost.median() > 0) == (library() is not None)


def test_q6_k_is_rounded_to_8_bits(tmp_path: Path) -> None:
    checkpoint = tiny(tmp_path / "tiny")
    file = written(checkpoint, q4_k_m)
    kept, plain = load(served(file, tmp_path / "cache"), "float32", "auto"), load(dequantised(checkpoint, file))
    for ours, theirs in zip(matrices(kept), matrices(plain), strict=True):
        assert isinstance(ours, TiledWeight) and isinstance(theirs, torch.Tensor)
        assert (ours.dense() - theirs).norm() < 0.006 * theirs.norm()
    assert kept.layers[0].moe.experts.down[0].dense().ne(plain.layers[0].moe.experts.down[0]).any()
    assert kept.layers[1].moe.experts.down[0].dense().eq(plain.layers[1].moe.experts.down[0]).all()
    prompts = [PROMPT, PROMPT[::-1]]
    for prompt in prompts:
        ours, theirs = (Pages(each, 1, 16).prompt(prompt) for each in (as_plain(kept), plain))
        assert (ours - theirs).norm() < 0.02 * theirs.norm()


def matrices(model: Decoder) -> list[Any]:
    held = [model.head]
    for layer in model.layers:
        held += [layer.attention.qkv, layer.attention.o, *layer.moe.experts.gate_up, *layer.moe.experts.down]
    return held


def test_infinities_are_refused(tmp_path: Path) -> None:
    file = written(tiny(tmp_path / "tiny"), of("Q8_0"))
    stored = next(each for each in gguf.GGUFReader(file).tensors if each.name == "blk.1.ffn_up_exps.weight")
    data = bytearray(file.read_bytes())
    data[int(stored.data_offset) : int(stored.data_offset) + 2] = np.float16(np.inf).tobytes()
    file.write_bytes(data)
    with pytest.raises(ModelError, match=r"experts.0.w3.weight holds infinities or NaNs"):
        load(served(file, tmp_path / "cache"), "float32", "auto")


@pytest.mark.parametrize("overrides", [{"model_type": "llama"}, {"model_type": "llama", "tie_word_embeddings": True}])
def test_dense_models(tmp_path: Path, overrides: dict[str, Any]) -> None:
    checkpoint = tiny(tmp_path / "tiny", **overrides)
    file = written(checkpoint, of("Q8_0"))
    ours = Pages(load(served(file, tmp_path / "cache")), 1, 16).prompt(PROMPT)
    theirs = Pages(load(dequantised(checkpoint, file)), 1, 16).prompt(PROMPT)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


FAMILIES = {
    "qwen3_moe": {"head_dim": 32, "moe_intermediate_size": 64, "num_experts": 8, "num_experts_per_tok": 3},
    "qwen3": {"head_dim": 32, "tie_word_embeddings": True},
    "qwen2": {},
}


@pytest.mark.oracle
@pytest.mark.parametrize("types", [of("F32"), of("Q8_0")])
@pytest.mark.parametrize("family", FAMILIES)
def test_other_families(tmp_path: Path, family: str, types: Callable[[str], str]) -> None:
    settings = {"model_type": family, "vocab_size": VOCABULARY, "intermediate_size": 96, "norm_topk_prob": True}
    oracle(tmp_path / "tiny", settings | FAMILIES[family])
    file = written(tmp_path / "tiny", types)
    ours = Pages(load(served(file, tmp_path / "cache")), 1, 16).prompt(PROMPT)
    theirs = Pages(load(dequantised(tmp_path / "tiny", file)), 1, 16).prompt(PROMPT)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def test_mistral_keeps_its_window(tmp_path: Path) -> None:
    checkpoint = tiny(tmp_path / "tiny", model_type="mistral")
    file = written(checkpoint, of("F32"), **{"llama.attention.sliding_window": 7})
    directory = served(file, tmp_path / "cache")
    assert json.loads((directory / "config.json").read_text())["sliding_window"] == 7
    assert ModelConfig.from_pretrained(directory)


def test_rows_of_q_and_k_are_where_a_checkpoint_has_them(tmp_path: Path) -> None:
    checkpoint = tiny(tmp_path / "tiny")
    handle = GgufHandle.open(written(checkpoint, of("F32")))
    for name, tensor in load_file(checkpoint / "model.safetensors").items():
        assert torch.equal(handle.get_tensor(name), tensor), name
        assert handle.get_slice(name).get_shape() == list(tensor.shape)
    assert len(handle.keys()) == len(load_file(checkpoint / "model.safetensors"))


def test_a_split_model_is_one(tmp_path: Path) -> None:
    checkpoint = tiny(tmp_path / "tiny")
    whole = written(checkpoint, of("Q8_0"))
    parts = split(whole, tmp_path / "parts")
    directory = served(parts[1], tmp_path / "cache")
    assert directory.name.startswith("model-Q8_0-") and "of" not in directory.name
    both = [Pages(load(each), 1, 16).prompt(PROMPT) for each in (directory, served(whole, tmp_path / "cache"))]
    assert torch.equal(*both)
    source = Source.of(directory)
    assert source is not None
    assert [each.name for each in source.files] == ["model-00001-of-00002.gguf", "model-00002-of-00002.gguf"]


def split(file: Path, directory: Path) -> list[Path]:
    """Cuts a file into two, as llama-gguf-split does: the first part has the metadata."""
    directory.mkdir()
    reader = gguf.GGUFReader(file)
    metadata = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    middle = len(reader.tensors) // 2
    paths = []
    for number, tensors in enumerate((reader.tensors[:middle], reader.tensors[middle:])):
        paths.append(directory / f"model-Q8_0-{number + 1:05}-of-00002.gguf")
        writer = gguf.GGUFWriter(paths[-1], metadata.pop("general.architecture", "llama"))
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", 2)
        writer.add_int32("split.tensors.count", len(reader.tensors))
        for key, value in (metadata if number == 0 else {}).items():
            add_value(writer, key, value)
        for tensor in tensors:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return paths


def test_the_source_is_the_file_itself(tmp_path: Path) -> None:
    file = written(tiny(tmp_path / "tiny"), of("Q8_0"))
    directory = served(file, tmp_path / "cache")
    before = Source.of(directory)
    assert before is not None and before.size == file.stat().st_size
    written(tiny(tmp_path / "other", seed=1), of("Q8_0")).replace(file)
    now = Source.of(directory)
    assert now is not None and before.change(now) is not None
    assert Type.Q8_0 in {each.tensor_type for each in gguf.GGUFReader(file).tensors}
