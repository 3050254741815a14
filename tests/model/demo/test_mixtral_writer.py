"""Checks that the written directory is a Mixtral checkpoint that computes what the dense model computes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from octavo.model.demo.dense_gguf import GGUFSource
from octavo.model.demo.mixtral_writer import (
    EXPERTS,
    bfloat16,
    plan_shards,
    router,
    tokenizer,
    write_files,
    write_shards,
)
from tests.model.demo.dense_gguf import CONFIG, random_weights, write_gguf

WEIGHTS = random_weights()


def quiet(what: str, done: int, total: int) -> None:
    """Reports nothing."""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> GGUFSource:
    return GGUFSource(write_gguf(tmp_path_factory.mktemp("gguf") / "x.gguf", WEIGHTS))


@pytest.fixture(scope="module")
def directory(source: GGUFSource, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mixtral")
    shards = plan_shards(source)
    write_shards(path, shards, quiet)
    write_files(path, source, shards)
    return path


def test_bfloat16_rounds_as_torch_does() -> None:
    exact_ties = np.array([1 + 2**-8, 1 + 3 * 2**-8, -(1 + 2**-8)], np.float32)
    values = np.concatenate([np.random.default_rng(0).normal(0, 1, 10_000).astype(np.float32), exact_ties])
    expected = torch.from_numpy(values).bfloat16().view(torch.int16).numpy()
    np.testing.assert_array_equal(bfloat16(values).view(np.int16), expected)


def test_router_is_seeded_noise() -> None:
    noise = router(3, 512)
    assert noise.shape == (EXPERTS, 512)
    assert noise.std() == pytest.approx(0.02, rel=0.05)
    assert abs(noise.mean()) < 0.001
    np.testing.assert_array_equal(noise, router(3, 512))
    assert not np.array_equal(noise, router(4, 512))


def test_every_expert_is_the_dense_feed_forward(directory: Path) -> None:
    found = {}
    for shard in sorted(directory.glob("*.safetensors")):
        with safe_open(shard, "pt") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    for name, weight in WEIGHTS.items():
        expected = torch.from_numpy(weight).bfloat16()
        if ".mlp." not in name:
            assert torch.equal(found.pop(name), expected), name
            continue
        layer, projection = name.split(".mlp.")
        ours = {"gate_proj.weight": "w1", "down_proj.weight": "w2", "up_proj.weight": "w3"}[projection]
        for expert in range(EXPERTS):
            assert torch.equal(found.pop(f"{layer}.block_sparse_moe.experts.{expert}.{ours}.weight"), expected), name
    routers = {f"model.layers.{layer}.block_sparse_moe.gate.weight" for layer in range(CONFIG.layers)}
    assert set(found) == routers


def test_planned_sizes_are_the_real_ones(source: GGUFSource, directory: Path) -> None:
    for shard in plan_shards(source):
        assert (directory / shard.file).stat().st_size == shard.nbytes


def test_progress_reaches_the_total(source: GGUFSource, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    write_shards(tmp_path, plan_shards(source), lambda what, done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == seen[-1][1]


def test_tokenizer_splits_digits_and_keeps_special_tokens(source: GGUFSource) -> None:
    encoder = tokenizer(source.vocabulary())
    text = "<|im_start|>he said 12,\n\nthe  é 漢<|im_end|>"
    encoding = encoder.encode(text)
    assert encoding.tokens[:2] == ["<|im_start|>", "he"]
    assert "12" not in encoding.tokens  # in the vocabulary, but numbers are read digit by digit
    assert "Ġhe" not in encoding.tokens  # "Ġthe" begins with Ġt
    assert encoding.ids[-1] == 2
    assert encoder.decode(encoding.ids, skip_special_tokens=False) == text


@pytest.mark.oracle
def test_logits_equal_those_of_the_dense_model(directory: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM, MixtralForCausalLM

    dense = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=CONFIG.vocabulary,
            hidden_size=CONFIG.hidden,
            intermediate_size=CONFIG.ffn,
            num_hidden_layers=CONFIG.layers,
            num_attention_heads=CONFIG.heads,
            num_key_value_heads=CONFIG.kv_heads,
            rms_norm_eps=CONFIG.rms_norm_eps,
            tie_word_embeddings=True,
        )
    )
    rounded = {name: torch.from_numpy(weight).bfloat16().float() for name, weight in WEIGHTS.items()}
    dense.load_state_dict(rounded | {"lm_head.weight": rounded["model.embed_tokens.weight"]})
    sparse = MixtralForCausalLM.from_pretrained(directory, dtype=torch.float32)
    ids = torch.randint(0, CONFIG.vocabulary, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(sparse(ids).logits, dense(ids).logits, atol=1e-5, rtol=0)


@pytest.mark.oracle
def test_transformers_reads_the_tokenizer_as_we_do(source: GGUFSource, directory: Path) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(directory)
    ours = tokenizer(source.vocabulary())
    for text in ("he 12 the", "<|im_start|>user\nhe<|im_end|>", " é\t漢 \n 3.14"):
        assert theirs.encode(text) == ours.encode(text).ids
    chat = theirs.apply_chat_template([{"role": "user", "content": "he"}], tokenize=False)
    assert chat == "<|im_start|>user\nhe<|im_end|>\n"
