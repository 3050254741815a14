"""Tests config.json and generation_config.json in every spelling, and what is refused."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from octavo.model.config import ModelConfig, ModelError
from octavo.model.generation_config import GenerationConfig
from octavo.model.rope_config import Llama3Scaling
from tests.tiny import CONFIG, LLAMA3_ROPE

YARN = {"type": "yarn", "factor": 4, "original_max_position_embeddings": 64}
LONG = {"type": "longrope", "long_factor": [2.0] * 4, "original_max_position_embeddings": 64}
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


def test_null_in_rope_parameters_is_as_good_as_nothing(tmp_path: Path) -> None:
    rope = {"rope_type": None, "type": None, "rope_theta": None, "partial_rotary_factor": None, "factor": None}
    config = ModelConfig.from_pretrained(write(tmp_path, rope_parameters=rope, partial_rotary_factor=None))
    assert (config.rope_theta, config.rope_scaling) == (1e4, None)


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
    assert (config.rope_theta, config.rope_scaling) == (1e4, Llama3Scaling(8.0, 1.0, 4.0, 64))
    shorter = {key: value for key, value in LLAMA3_ROPE.items() if key != "original_max_position_embeddings"}
    config = ModelConfig.from_pretrained(write(tmp_path, model_type="llama", rope_scaling=shorter))
    assert config.rope_scaling == Llama3Scaling(8.0, 1.0, 4.0, 512)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model_type": "gpt2"}, "model_type is 'gpt2', and only 'mixtral', 'mistral', 'llama', 'qwen2'"),
        ({"model_type": ["llama"]}, "model_type is ['llama']"),
        ({"model_type": ABSENT}, "model_type is None"),
        ({"rope_scaling": {"type": "dynamic", "factor": 4}}, "rope type is 'dynamic'"),
        ({"rope_scaling": YARN | {"beta_fast": 1e308, "beta_slow": 1e-308}}, "beta_fast is 1e+308"),
        ({"rope_scaling": YARN | {"attention_factor": 1e308}}, "attention_factor is 1e+308"),
        ({"rope_scaling": YARN | {"mscale": 1e308, "mscale_all_dim": 1}}, "mscale is 1e+308"),
        (
            {"rope_scaling": YARN | {"beta_fast": 1, "beta_slow": 32}},
            "beta_fast (1.0) is not more than beta_slow (32.0)",
        ),
        ({"rope_scaling": LONG | {"original_max_position_embeddings": 1}}, "original_max_position_embeddings is 1"),
        ({"rope_scaling": LONG | {"long_mscale": 1e308}}, "long_mscale is 1e+308"),
        ({"rope_scaling": LONG | {"long_factor": [1e-300] * 4}}, "the least of long_factor (1e-300)"),
        ({"rope_scaling": LONG | {"long_factor": [1.0] * 3}}, "long_factor is not a list of 4 numbers"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2}}, "rope type is 'linear', and only 'default', 'llama3'"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "factor is missing"),
        ({"rope_parameters": LLAMA3_ROPE | {"low_freq_factor": "low"}}, "low_freq_factor is 'low'"),
        ({"rope_parameters": LLAMA3_ROPE | {"low_freq_factor": 4}}, "high_freq_factor (4.0) is not more than"),
        ({"rope_parameters": LLAMA3_ROPE | {"factor": 1e-300}}, "factor (1e-300)"),
        ({"rope_parameters": LLAMA3_ROPE | {"high_freq_factor": 1e300}}, "high_freq_factor (1e+300) is not from 1 to"),
        ({"max_position_embeddings": 1}, "max_position_embeddings is 1"),
        ({"rope_parameters": LLAMA3_ROPE | {"original_max_position_embeddings": 0.5}}, "original_max_position"),
        ({"rope_parameters": [1]}, "rope_parameters is not one set of numbers"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "rope_parameters is not one set of numbers"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"partial_rotary_factor": 0}, "partial_rotary_factor is set"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"torch_dtype": "float8_e4m3fn"}, "torch_dtype is 'float8_e4m3fn', and only float32, bfloat16, float16"),
        ({"dtype": "int8"}, "dtype is 'int8'"),
        ({"attention_bias": True}, "attention_bias"),
        ({"model_type": "llama", "mlp_bias": True}, "mlp_bias"),
        ({"model_type": "mistral", "layer_types": ["full_attention", "sliding_attention"]}, "layer_types differ"),
        ({"hidden_size": ABSENT}, "hidden_size is missing"),
        ({"num_local_experts": ABSENT}, "num_local_experts is missing"),
        ({"vocab_size": "many"}, "vocab_size is 'many'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"hidden_size": 10**400}, "not a positive integer of 64 bits"),
        ({"sliding_window": -1}, "sliding_window is -1"),
        ({"rms_norm_eps": "x"}, "rms_norm_eps is 'x'"),
        ({"rope_theta": 0}, "rope_theta is 0.0"),
        ({"rope_theta": -1e4}, "rope_theta is -10000.0"),
        ({"rope_theta": 1e-300}, "rope_theta is 1e-300, and frequencies need a base of at least 1"),
        ({"rope_theta": float("nan")}, "rope_theta is nan"),
        ({"rms_norm_eps": 0}, "rms_norm_eps is 0.0"),
        ({"rms_norm_eps": -1e-5}, "rms_norm_eps is -1e-05"),
        ({"rms_norm_eps": 2}, "rms_norm_eps is 2.0, and not below 1"),
        ({"vocab_size": True}, "vocab_size is True"),
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"hidden_size": 32.0}, "hidden_size is 32.0"),
        ({"num_hidden_layers": 10**8}, "100000000 layers are too many"),
        ({"num_local_experts": 10**8}, "100000000 experts are too many"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings is 1"),
        ({"model_type": 1000 * "x"}, "model_type is 'xxxxxxxxxxxx...xxxxxxxxxxxxx'"),
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


@pytest.mark.parametrize(
    ("values", "meant"),
    [
        ({"top_k": 0}, {}),
        ({"top_k": -1, "top_p": 0.8}, {"top_p": 0.8}),
        ({"top_k": 2**40}, {"top_k": 2**31 - 1}),
        ({"top_p": 0}, {"top_p": 0.0}),
        ({"top_p": 1}, {}),
        ({"top_p": 1.0001}, {}),
        ({"top_k": None, "top_p": None, "temperature": None, "min_p": None, "repetition_penalty": None}, {}),
        ({"min_p": 0, "repetition_penalty": 1}, {"min_p": 0.0, "repetition_penalty": 1.0}),
        ({"do_sample": False, "top_k": -7, "top_p": 0.9, "repetition_penalty": 1.1}, {"repetition_penalty": 1.1}),
        ({"max_length": -5, "max_new_tokens": "many", "pad_token_id": -1}, {}),
        ({"eos_token_id": []}, {}),
        ({"eos_token_id": [5]}, {"eos_token_ids": (5,)}),
        ({"no_repeat_ngram_size": 0, "min_length": 0, "num_beams": 1, "typical_p": 1.0, "bad_words_ids": None}, {}),
        ({"no_repeat_ngram_size": 3, "num_beams": 4}, {"passed_over": ("num_beams", "no_repeat_ngram_size")}),
    ],
)
def test_each_recommendation_is_read_as_transformers_reads_it(
    tmp_path: Path, values: dict[str, Any], meant: dict[str, Any]
) -> None:
    write(write(tmp_path), "generation_config.json", **values)
    assert GenerationConfig.from_pretrained(tmp_path) == replace(GenerationConfig((2,)), **meant)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0, not a number from 0.01 to 100"),
        ({"repetition_penalty": -1.5}, "repetition_penalty is -1.5"),
        ({"repetition_penalty": float("nan")}, "repetition_penalty is nan"),
        ({"repetition_penalty": 1e300}, "repetition_penalty is 1e+300"),
        ({"do_sample": False, "repetition_penalty": 0}, "repetition_penalty is 0"),
        ({"temperature": -1}, "temperature is -1"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"temperature": True}, "temperature is True"),
        ({"top_k": -2}, "top_k is -2, not an integer of at least -1"),
        ({"top_k": 20.0}, "top_k is 20.0"),
        ({"top_k": True}, "top_k is True"),
        ({"top_k": 10**80}, "top_k is 1000"),
        ({"top_p": -0.1}, "top_p is -0.1"),
        ({"top_p": "0.9"}, "top_p is '0.9'"),
        ({"min_p": 1.5}, "min_p is 1.5, not a number from 0 to 1"),
        ({"eos_token_id": -1}, "eos_token_id is -1"),
        ({"eos_token_id": True}, "eos_token_id is True"),
        ({"eos_token_id": "</s>"}, "eos_token_id is '</s>'"),
        ({"eos_token_id": [2, [3]]}, "eos_token_id is [2, [3]]"),
        ({"eos_token_id": 2**70}, "eos_token_id is 11805"),
        ({"eos_token_id": 3.0}, "eos_token_id is 3.0"),
    ],
)
def test_a_recommendation_without_a_meaning_is_refused(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    write(write(tmp_path), "generation_config.json", **values)
    with pytest.raises(ModelError) as caught:
        GenerationConfig.from_pretrained(tmp_path)
    assert f"in generation_config.json, {message}" in str(caught.value)
    assert len(str(caught.value)) < 300 + len(str(tmp_path))


def make_directory(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (make_directory, "is not a file"),
        (lambda path: path.symlink_to("nowhere"), "is not a file"),
        (lambda path: path.write_bytes(b""), "it is empty"),
        (lambda path: path.write_bytes(b" \n"), "it is empty"),
        (lambda path: path.write_bytes(b"\xef\xbb\xbf{}"), "begins with a byte order mark"),
        (lambda path: path.write_bytes("{}".encode("utf-16")), "utf-8"),
        (lambda path: path.write_bytes(b'{"top_k": ' + 10_000 * b"9" + b"}"), "a number of thousands of digits"),
        (lambda path: path.write_bytes(b"[1, 2]"), "is not a JSON object"),
        (lambda path: path.write_bytes(100_000 * b'{"a":'), "nested too deeply"),
        (lambda path: path.write_bytes(b'{"top_k": 5'), "delimiter"),
    ],
)
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_a_file_that_cannot_be_read_says_why(
    tmp_path: Path, name: str, make: Callable[[Path], object], message: str
) -> None:
    write(tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    make(tmp_path / name)
    with pytest.raises(ModelError) as caught:
        GenerationConfig.from_pretrained(tmp_path)
    assert name in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests may run as a user who may read everything."""
    write(tmp_path)

    def refuse(path: Path, **options: Any) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(ModelError, match=r"config\.json cannot be read \(Permission denied\)"):
        ModelConfig.from_pretrained(tmp_path)


def test_reading_a_config_does_not_import_torch() -> None:
    program = "import sys, model.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0
