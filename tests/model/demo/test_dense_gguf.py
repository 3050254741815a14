"""Checks that the dense checkpoint that is read is the one that was written, in any order and precision of the file."""

import builtins
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Quantization

from octavo.model.config import ModelError
from octavo.model.demo.dense_gguf import GGUFSource, hugging_face_name, unpermute
from tests.model.demo.dense_gguf import CONFIG, MERGES, SPECIAL, TEMPLATE, TOKENS, permute, random_weights, write_gguf


def test_config_and_vocabulary(tmp_path: Path) -> None:
    source = GGUFSource(write_gguf(tmp_path / "x.gguf", random_weights()))
    assert source.config == CONFIG
    vocabulary = source.vocabulary()
    assert list(vocabulary.tokens) == TOKENS
    assert list(vocabulary.merges) == MERGES
    assert list(vocabulary.special) == SPECIAL
    assert (vocabulary.bos_id, vocabulary.eos_id, vocabulary.unk_id, vocabulary.pad_id) == (1, 2, 0, 2)
    assert vocabulary.chat_template == TEMPLATE


def test_fp32_tensors_come_back_exactly(tmp_path: Path) -> None:
    weights = random_weights()
    source = GGUFSource(write_gguf(tmp_path / "x.gguf", weights))
    assert set(source.names) == set(weights)
    for name, weight in weights.items():
        assert source.shape(name) == weight.shape
        np.testing.assert_array_equal(source.tensor(name), weight, err_msg=name)


def test_quantised_tensors_come_back_within_half_a_step(tmp_path: Path) -> None:
    weights = random_weights()
    source = GGUFSource(write_gguf(tmp_path / "x.gguf", weights, Quantization.Q4_1))
    for name, weight in weights.items():
        if weight.ndim == 1:
            np.testing.assert_array_equal(source.tensor(name), weight)
            continue
        blocks = weight.reshape(*weight.shape[:-1], -1, 32)  # quantised along the input, 32 at a time
        levels = 255 if "embed" in name else 15
        reach = 2 * np.abs(blocks).max(-1) if "embed" in name else np.ptp(blocks, -1)
        step = np.repeat(reach / levels, 32, axis=-1)
        assert (np.abs(source.tensor(name) - weight) <= 0.52 * step + 1e-3 * np.abs(weight)).all(), name


@pytest.mark.parametrize(("heads", "head_dim"), [(1, 2), (3, 4), (9, 64)])
def test_unpermute_inverts_llama_cpp(heads: int, head_dim: int) -> None:
    weight = np.arange(heads * head_dim * 5, dtype=np.float32).reshape(-1, 5)
    np.testing.assert_array_equal(unpermute(permute(weight, heads), heads), weight)


def test_names() -> None:
    assert hugging_face_name("token_embd.weight") == "model.embed_tokens.weight"
    assert hugging_face_name("blk.12.ffn_down.weight") == "model.layers.12.mlp.down_proj.weight"
    with pytest.raises(ModelError, match=r"unexpected tensor, 'blk\.0\.attn_q\.bias'"):
        hugging_face_name("blk.0.attn_q.bias")


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "gpt2")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelError, match="type 'gpt2'; give a GGUF file of a Llama model"):
        GGUFSource(tmp_path / "x.gguf")


def test_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_gguf(name: str, *rest: object) -> object:
        if name == "gguf":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_gguf)
    with pytest.raises(ModelError, match=r"pip install 'octavo\[demo\]'"):
        GGUFSource(tmp_path / "x.gguf")
