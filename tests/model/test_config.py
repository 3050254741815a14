"""Tests config.json and generation_config.json in every spelling, and what is refused."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from octavo.model.config import GenerationConfig, ModelConfig, ModelError, RopeScaling
from tests.tiny import CONFIG, LLAMA3_ROPE

ABSENT = object()
ROOT = Path(__file__).parents[2]


def write(directory: Path, name: str = "config.json", **overrides: Any) -> Path:
    base = CONFIG if name == "config.json" else {}
    values = {key: value for key, value in (base | overrides).items() if value is not ABSENT}
    (directory / name).write_text(json.dumps(values))
    return directory


def test_older_and_newer_spelling_read_the_same(tmp_path: Path) -> None:
    older = ModelConfig.from_pretrained(write(tmp_path))
    newer = ModelConfig.from_pretrained(
        write(
            tmp_path,
            rope_theta=ABSENT,
            rope_parameters={"rope_theta": 1e4, "rope_type": "default"},
            torch_dtype=ABSENT,
            dtype="float32",
            head_dim=ABSENT,
            num_local_experts=ABSENT,
            num_experts=4,
            sliding_window=ABSENT,
            eos_token_id=[2],
        )
    )
    assert older == newer
    assert older == ModelConfig(
        vocab_size=256,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_experts=4,
        num_experts_per_tok=2,
        rope_theta=1e4,
        max_position_embeddings=512,
        dtype="float32",
        eos_token_ids=(2,),
    )


def test_values_that_differ_from_the_defaults(tmp_path: Path) -> None:
    config = ModelConfig.from_pretrained(
        write(
            tmp_path,
            head_dim=16,
            sliding_window=7,
            tie_word_embeddings=True,
            torch_dtype="torch.bfloat16",
            num_key_value_heads=None,
            rope_scaling={"type": "default"},
            eos_token_id=[2, 5],
        )
    )
    assert (config.head_dim, config.sliding_window, config.tie_word_embeddings) == (16, 7, True)
    assert (config.dtype, config.num_key_value_heads, config.rope_theta) == ("bfloat16", 4, 1e4)
    assert config.eos_token_ids == (2, 5)


DEFAULTED = (
    "head_dim",
    "max_position_embeddings",
    "num_key_value_heads",
    "rms_norm_eps",
    "rope_theta",
    "sliding_window",
    "tie_word_embeddings",
)


@pytest.mark.oracle
@pytest.mark.parametrize("model_type", ["mixtral", "mistral", "llama"])
@pytest.mark.parametrize("silent", [DEFAULTED, *((name,) for name in DEFAULTED), ()], ids=" ".join)
def test_where_a_file_is_silent_it_means_what_transformers_makes_of_it(
    tmp_path: Path, model_type: str, silent: tuple[str, ...]
) -> None:
    from transformers import AutoConfig

    changes = {"model_type": model_type, "num_attention_heads": 16, "hidden_size": 64, "head_dim": 6}
    write(tmp_path, **changes, **dict.fromkeys(set(silent) - changes.keys(), ABSENT))
    ours, theirs = ModelConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)
    for name in set(DEFAULTED) - {"rope_theta", "sliding_window"}:
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.rope_theta == theirs.rope_parameters["rope_theta"]
    assert ours.sliding_window == (None if model_type == "llama" else theirs.sliding_window)


def test_a_window_of_null_is_none_at_all(tmp_path: Path) -> None:
    assert (
        ModelConfig.from_pretrained(write(tmp_path, model_type="mistral", sliding_window=None)).sliding_window is None
    )
    absent = write(tmp_path, model_type="mistral", sliding_window=ABSENT)
    assert ModelConfig.from_pretrained(absent).sliding_window == 4096


@pytest.mark.parametrize("model_type", ["mistral", "llama"])
def test_a_dense_model_has_one_expert_and_no_router(tmp_path: Path, model_type: str) -> None:
    config = ModelConfig.from_pretrained(
        write(tmp_path, model_type=model_type, num_local_experts=ABSENT, num_experts_per_tok=ABSENT)
    )
    assert (config.dense, config.num_experts, config.num_experts_per_tok) == (True, 1, 1)
    assert config.num_active_parameters() == config.num_parameters()
    routed = replace(config, dense=False)
    assert routed.num_parameters() - config.num_parameters() == config.num_hidden_layers * config.hidden_size


@pytest.mark.parametrize("older", [True, False])
def test_llama_3_says_how_it_stretches_its_context(tmp_path: Path, older: bool) -> None:
    rope = {"rope_scaling": LLAMA3_ROPE} if older else {"rope_parameters": LLAMA3_ROPE | {"rope_theta": 1e4}}
    config = ModelConfig.from_pretrained(write(tmp_path, model_type="llama", **rope))
    assert (config.rope_theta, config.rope_scaling) == (1e4, RopeScaling(8.0, 1.0, 4.0, 64))
    shorter = {key: value for key, value in LLAMA3_ROPE.items() if key != "original_max_position_embeddings"}
    config = ModelConfig.from_pretrained(write(tmp_path, model_type="llama", rope_scaling=shorter))
    assert config.rope_scaling == RopeScaling(8.0, 1.0, 4.0, 512)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model_type": "gpt2"}, "model_type is 'gpt2', and only 'mixtral', 'mistral', 'llama' checkpoints"),
        ({"model_type": ["llama"]}, "model_type is ['llama']"),
        ({"model_type": ABSENT}, "model_type is None"),
        ({"rope_scaling": {"type": "yarn", "factor": 4}}, "rope type is 'yarn'"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2}}, "rope type is 'linear', and only 'default' and"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "factor is missing"),
        ({"rope_parameters": LLAMA3_ROPE | {"low_freq_factor": "low"}}, "low_freq_factor is 'low'"),
        ({"rope_parameters": LLAMA3_ROPE | {"low_freq_factor": 4}}, "high_freq_factor (4.0) is not more than"),
        ({"rope_parameters": LLAMA3_ROPE | {"original_max_position_embeddings": 0.5}}, "original_max_position"),
        ({"rope_parameters": [1]}, "rope_parameters is not one set of numbers"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "rope_parameters is not one set of numbers"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"torch_dtype": "float8_e4m3fn"}, "torch_dtype is 'float8_e4m3fn', and only float32, bfloat16, float16"),
        ({"dtype": "int8"}, "dtype is 'int8'"),
        ({"attention_bias": True}, "attention_bias"),
        ({"model_type": "llama", "mlp_bias": True}, "mlp_bias"),
        ({"model_type": "mistral", "layer_types": ["full_attention", "sliding_attention"]}, "layer_types differ"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised"),
        ({"hidden_size": ABSENT}, "hidden_size is missing"),
        ({"num_local_experts": ABSENT}, "num_local_experts is missing"),
        ({"vocab_size": "many"}, "vocab_size is 'many'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"hidden_size": 10**400}, "not a positive integer of 64 bits"),
        ({"sliding_window": -1}, "sliding_window is -1"),
        ({"rms_norm_eps": "x"}, "rms_norm_eps is 'x'"),
        ({"rope_theta": 0}, "rope_theta is 0.0"),
        ({"rope_theta": 10**400}, "not a number from 0 on"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes'"),
        ({"eos_token_id": "</s>"}, "eos_token_id is '</s>'"),
        ({"num_key_value_heads": 3}, "not a multiple"),
        ({"head_dim": 7}, "odd"),
        ({"num_experts_per_tok": 5}, "num_experts_per_tok (5) is more than num_experts (4)"),
    ],
)
def test_what_cannot_be_served_is_refused_in_one_sentence(
    tmp_path: Path, overrides: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError) as caught:
        ModelConfig.from_pretrained(write(tmp_path, **overrides))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[]", "\xff", ""])
def test_broken_json_is_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ModelError, match=r"config\.json"):
        ModelConfig.from_pretrained(tmp_path)


def test_missing_directory_and_missing_config(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="There is no directory"):
        ModelConfig.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(ModelError, match=r"has no config\.json"):
        ModelConfig.from_pretrained(tmp_path)


def test_parameter_counts_of_mixtral_8x7b() -> None:
    config = ModelConfig(
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        num_experts=8,
        num_experts_per_tok=2,
    )
    assert config.num_parameters() == 46_702_792_704
    assert round(config.num_active_parameters() / 1e9, 1) == 12.9
    tied = replace(config, tie_word_embeddings=True)
    assert config.num_parameters() - tied.num_parameters() == 32000 * 4096


def test_generation_config_recommends(tmp_path: Path) -> None:
    write(tmp_path)
    assert GenerationConfig.from_pretrained(tmp_path) == GenerationConfig(eos_token_ids=(2,))
    name = "generation_config.json"
    write(tmp_path, name, eos_token_id=[7, 9], temperature=0.6, top_k=40, top_p=0.9, min_p=0.1)
    assert GenerationConfig.from_pretrained(tmp_path) == GenerationConfig((7, 9), 0.6, 40, 0.9, 0.1)
    write(tmp_path, name, temperature=0, do_sample=True)
    assert GenerationConfig.from_pretrained(tmp_path) == GenerationConfig((2,), temperature=0.0)
    write(tmp_path, name, temperature=0.6, do_sample=False)
    assert GenerationConfig.from_pretrained(tmp_path) == GenerationConfig((2,))
    write(tmp_path, name, temperature="hot")
    with pytest.raises(ModelError, match=r"generation_config\.json, temperature is 'hot'"):
        GenerationConfig.from_pretrained(tmp_path)


def test_reading_a_config_does_not_import_torch() -> None:
    program = "import sys, model.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0
