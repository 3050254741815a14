"""A config.json is made of what a file's metadata say, or they are refused by name."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octavo.model.config import ModelError
from octavo.model.gguf.architectures import architecture_of
from octavo.model.gguf.config import config_of
from octavo.model.gguf.file import GgufModel
from octavo.model.gguf.names import pieces
from tests.model.gguf.writing import metadata_of, write
from tests.tiny import CONFIG

EMBEDDING = {"token_embd.weight": np.ones((64, 32), np.float32)}
LLAMA = CONFIG | {"model_type": "llama"}
QWEN3_MOE = CONFIG | {"model_type": "qwen3_moe", "num_experts": 4, "moe_intermediate_size": 24, "head_dim": 16}
LONG = {"llama.rope.freq_base": 5e5, "llama.attention.key_length": 64, "llama.rope.dimension_count": 64}


def read(path: Path, arch: str, metadata: dict[str, Any], **tensors: Any) -> dict[str, Any]:
    named = {f"{name.replace('__', '.')}.weight": np.asarray(each, np.float32) for name, each in tensors.items()}
    model = GgufModel.read(write(path / "x.gguf", arch, metadata, EMBEDDING | named, lambda name: "F32"))
    architecture = architecture_of(model)
    config = config_of(model, architecture)
    pieces(model, architecture, config)
    return config


def test_a_mixtral(tmp_path: Path) -> None:
    found = read(tmp_path, "llama", metadata_of(CONFIG, "llama"))
    assert found["model_type"] == "mixtral" and found["num_local_experts"] == 4 and found["num_experts_per_tok"] == 2
    assert found["vocab_size"] == 64 and found["head_dim"] == 8 and found["rms_norm_eps"] == 1e-5
    assert found["rope_theta"] == 1e4 and found["tie_word_embeddings"] is True and "rope_scaling" not in found
    assert found["intermediate_size"] == 48 and found["max_position_embeddings"] == 512 and found["dtype"] == "float32"


def test_a_llama(tmp_path: Path) -> None:
    found = read(tmp_path, "llama", metadata_of(LLAMA, "llama"), output=np.ones((64, 32)))
    assert found["model_type"] == "llama" and "num_local_experts" not in found
    assert found["tie_word_embeddings"] is False


def test_a_qwen3_moe(tmp_path: Path) -> None:
    said = metadata_of(QWEN3_MOE, "qwen3moe")
    found = read(tmp_path, "qwen3moe", said, blk__0__attn_q_norm=np.ones(16))
    assert found["model_type"] == "qwen3_moe" and found["num_experts"] == 4 and found["moe_intermediate_size"] == 24
    assert found["norm_topk_prob"] is True and found["head_dim"] == 16


def divisors(factor: float) -> list[float]:
    """Returns Llama 3.1's in transformers' words: wavelengths from 8192 / 4 to 8192 are between both."""
    found = []
    for n in range(32):
        wavelength = 2 * np.pi * 5e5 ** (2 * n / 64)
        if wavelength < 2048:
            found.append(1.0)
        elif wavelength > 8192:
            found.append(factor)
        else:
            smooth = (8192 / wavelength - 1) / 3
            found.append(1 / ((1 - smooth) / factor + smooth))
    return found


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama3s_frequencies_are_recognised(tmp_path: Path, factor: float) -> None:
    found = read(tmp_path, "llama", metadata_of(LLAMA, "llama") | LONG, rope_freqs=divisors(factor))
    assert found["rope_scaling"] == {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


def test_other_frequencies_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"rope_freqs.weight are not those of Llama 3.1"):
        read(tmp_path, "llama", metadata_of(LLAMA, "llama") | LONG, rope_freqs=[*divisors(8.0)[:-4], 7, 7, 8, 8])


@pytest.mark.parametrize("numbers", [[0.0] * 32, [1.0, np.inf] * 16, [-1.0] * 32, [np.nan] * 32])
def test_frequencies_that_divide_by_nothing_are_refused(tmp_path: Path, numbers: list[float]) -> None:
    with pytest.raises(ModelError, match="rope_freqs.weight are not above 0, or not finite"):
        read(tmp_path, "llama", metadata_of(LLAMA, "llama") | LONG, rope_freqs=numbers)


def test_yarn(tmp_path: Path) -> None:
    yarn = {"type": "yarn", "factor": 4.0, "original_context_length": 128, "yarn_beta_fast": 16.0}
    said = metadata_of(LLAMA, "llama") | {f"llama.rope.scaling.{key}": value for key, value in yarn.items()}
    assert read(tmp_path, "llama", said)["rope_scaling"] == {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 128,
        "beta_fast": 16.0,
    }


def test_one_size_for_each_layer_may_be_given(tmp_path: Path) -> None:
    said = metadata_of(LLAMA, "llama")
    assert read(tmp_path, "llama", said | {"llama.feed_forward_length": [48, 48]})["intermediate_size"] == 48
    with pytest.raises(ModelError, match=r"llama.feed_forward_length differs from layer to layer"):
        read(tmp_path, "llama", said | {"llama.feed_forward_length": [48, 64]})


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ({"embedding_length": None}, "llama.embedding_length is missing"),
        ({"block_count": 0}, "llama.block_count is 0, not a whole number above 0"),
        ({"attention.head_count": "many"}, "llama.attention.head_count is 'many'"),
        ({"attention.layer_norm_rms_epsilon": -1.0}, "layer_norm_rms_epsilon is -1.0, not a number above 0"),
        ({"attention.value_length": 16}, "llama.attention.value_length is not 8, the length of keys"),
        ({"rope.dimension_count": 4}, "llama.rope.dimension_count is not 8, and only whole heads are rotated"),
        ({"rope.scaling.type": "longrope", "rope.scaling.factor": 2.0}, "rope.scaling.type is 'longrope'"),
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 2.0}, "rope.scaling.type is 'linear'"),
        ({"rope.scaling.type": "yarn", "rope.scaling.factor": 2.0}, "original_context_length is missing"),
        ({"attn_logit_softcapping": 50.0}, "llama.attn_logit_softcapping is 50.0, and nothing here computes with it"),
        ({"attention.clamp_kqv": 8.0}, "llama.attention.clamp_kqv is 8.0"),
        ({"attention.causal": False}, "llama.attention.causal is False"),
        ({"expert_gating_func": 2}, "llama.expert_gating_func is 2"),
        ({"expert_weights_scale": 2.5}, "llama.expert_weights_scale is 2.5"),
        ({"expert_shared_count": 1}, "llama.expert_shared_count is 1"),
        ({"expert_weights_norm": False}, "llama.expert_weights_norm is false"),
        ({"something.new": 3}, "llama.something.new is 3, and nothing here computes with it"),
    ],
)
def test_what_cannot_be_computed_is_refused_by_name(tmp_path: Path, said: dict[str, Any], sentence: str) -> None:
    metadata = metadata_of(CONFIG, "llama") | {f"llama.{key}": value for key, value in said.items()}
    with pytest.raises(ModelError) as caught:
        read(tmp_path, "llama", metadata)
    assert sentence in str(caught.value) and "x.gguf" in str(caught.value)


@pytest.mark.parametrize(
    ("said", "value"),
    [("expert_gating_func", 1), ("expert_weights_scale", 1.0), ("logit_scale", 0.0), ("attention.causal", True)],
)
def test_what_asks_for_nothing_is_passed_over(tmp_path: Path, said: str, value: Any) -> None:
    assert read(tmp_path, "llama", metadata_of(CONFIG, "llama") | {f"llama.{said}": value})


@pytest.mark.parametrize("kind", ["adapter", "imatrix", "mmproj"])
def test_what_is_no_model_is_refused(tmp_path: Path, kind: str) -> None:
    with pytest.raises(ModelError, match=f"holds no model, since its general.type is '{kind}'"):
        read(tmp_path, "llama", metadata_of(CONFIG, "llama") | {"general.type": kind})
    assert read(tmp_path, "llama", metadata_of(CONFIG, "llama") | {"general.type": "model"})


@pytest.mark.parametrize("arch", ["gemma3", "deepseek2", "mamba"])
def test_other_architectures_are_refused(tmp_path: Path, arch: str) -> None:
    with pytest.raises(ModelError, match=f"a model of the architecture '{arch}', and only llama"):
        read(tmp_path, arch, {})


@pytest.mark.parametrize(
    ("name", "shape", "sentence"),
    [
        ("blk__0__attn_q__more", (4, 4), "holds the tensor"),
        ("blk__0__attn_q_norm", (8,), "which models of the type mixtral have not"),
        ("blk__0__ffn_gate", (4, 4), "have not"),
        ("blk__0__ffn_gate_exps", (4, 4), "have not"),
        ("blk__0__attn_k", (6, 4), "has 6 rows|with 6 rows, which are not pairs of 2 heads"),
        ("blk__00__attn_v", (4, 4), "have not"),
    ],
)
def test_strange_tensors_are_refused_by_name(tmp_path: Path, name: str, shape: tuple[int, ...], sentence: str) -> None:
    with pytest.raises(ModelError, match=sentence):
        read(tmp_path, "llama", metadata_of(CONFIG, "llama"), **{name: np.ones(shape)})


def test_the_same_weights_twice_are_refused(tmp_path: Path) -> None:
    both = {"blk__0__ffn_up_exps": np.ones((4, 8, 8)), "blk__0__ffn_up__3": np.ones((8, 8))}
    with pytest.raises(ModelError, match="which are the same weights"):
        read(tmp_path, "llama", metadata_of(CONFIG, "llama"), **both)
