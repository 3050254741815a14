"""Compares the decoder with transformers' own, sparse and dense, and with itself: batched = alone, chunked = whole."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from octavo.model.decoder import Decoder
from octavo.model.moe import Router
from octavo.model.ops.seams import Ops
from octavo.model.weights.forms import ExpertWeights
from tests.model.checkpoints import Tensors, change, load
from tests.model.marks import needs_fbgemm
from tests.model.pages import Pages
from tests.tiny import CONFIG, LLAMA3_ROPE, write_tiny_checkpoint

TOLERANCE = 1e-4
SHARP = 20.0  # makes choices clear; the tests check the margins that they rely on

SHAPES: dict[str, dict[str, Any]] = {
    "four experts": {"num_local_experts": 4},
    "eight experts": {"num_local_experts": 8},
    "sixteen experts, four chosen": {"num_local_experts": 16, "num_experts_per_tok": 4},
    "eight experts, one chosen": {"num_local_experts": 8, "num_experts_per_tok": 1},
    "multi-head": {"num_key_value_heads": 4},
    "multi-query": {"num_key_value_heads": 1},
    "wide heads": {"head_dim": 16},
    "sliding window": {"sliding_window": 7},
    "window of one": {"sliding_window": 1},
    "tied": {"tie_word_embeddings": True},
    "bfloat16 on disk": {"torch_dtype": "bfloat16"},
    "float16 on disk": {"torch_dtype": "float16"},
}
DENSE_NAMES = {"w1.weight": "gate_proj", "w3.weight": "up_proj", "w2.weight": "down_proj"}
LLAMA, MISTRAL = {"model_type": "llama"}, {"model_type": "mistral"}
DENSE_SHAPES: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "llama, multi-head, tied": LLAMA | {"num_key_value_heads": 4, "tie_word_embeddings": True},
    "llama, wide heads": LLAMA | {"head_dim": 16},
    "llama 3": LLAMA | {"rope_scaling": LLAMA3_ROPE},
    "llama 3, newer spelling": LLAMA | {"rope_parameters": LLAMA3_ROPE | {"rope_theta": 5e5}},
    "llama with a window that nobody reads": LLAMA | {"sliding_window": 7},
    "mistral": MISTRAL,
    "mistral, multi-query, tied": MISTRAL | {"num_key_value_heads": 1, "tie_word_embeddings": True},
    "mistral, sliding window": MISTRAL | {"sliding_window": 7},
    "mistral, bfloat16 on disk": MISTRAL | {"torch_dtype": "bfloat16"},
}


def random_tokens(count: int, seed: int = 0) -> list[int]:
    return torch.randint(3, 256, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.fixture
def oracle() -> Callable[[Path], Any]:
    """Loads a checkpoint with transformers, in float32."""
    import transformers

    return lambda directory: transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)


def assert_matches(directory: Path, model: Any, tokens: list[int]) -> None:
    """Asserts that our logits are the oracle's, for the whole prompt and token by token."""
    with torch.inference_mode():
        expected = model(torch.tensor([tokens])).logits[0]
    pages = Pages(load(directory), sequences=2, length=len(tokens))
    whole = pages.prompt(tokens)
    one_by_one = torch.cat([pages.step([(1, n, [token])]) for n, token in enumerate(tokens)])
    assert (whole - expected).abs().max() < TOLERANCE
    assert (one_by_one - expected).abs().max() < TOLERANCE


@pytest.mark.oracle
@pytest.mark.parametrize("name", SHAPES | DENSE_SHAPES)
def test_logits_match_transformers(tmp_path: Path, oracle: Any, name: str) -> None:
    write_tiny_checkpoint(tmp_path, **(SHAPES | DENSE_SHAPES)[name])
    assert_matches(tmp_path, oracle(tmp_path), random_tokens(37))


@pytest.mark.oracle
def test_beyond_its_first_context_llama_3_is_still_transformers(tmp_path: Path, oracle: Any) -> None:
    write_tiny_checkpoint(tmp_path, **LLAMA, rope_scaling=LLAMA3_ROPE)
    assert_matches(tmp_path, oracle(tmp_path), random_tokens(200))


@pytest.mark.oracle
@pytest.mark.parametrize("original", [True, False], ids=["released layout", "transformers' layout"])
@pytest.mark.parametrize("shard_size", ["10GB", "40KB"], ids=["one file", "sharded"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_what_transformers_writes_is_read(
    tmp_path: Path, oracle: Any, original: bool, shard_size: str, tied: bool
) -> None:
    model = oracle(write_tiny_checkpoint(tmp_path / "ours", tie_word_embeddings=tied))
    written = tmp_path / "theirs"
    model.save_pretrained(written, save_original_format=original, max_shard_size=shard_size)
    assert (written / "model.safetensors.index.json").exists() == (shard_size == "40KB")
    assert "rope_theta" not in json.loads((written / "config.json").read_text())
    assert_matches(written, model, random_tokens(37))


@pytest.mark.oracle
@pytest.mark.parametrize("model_type", ["llama", "mistral"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_what_transformers_writes_of_a_dense_model_is_read(
    tmp_path: Path, oracle: Any, model_type: str, tied: bool
) -> None:
    model = oracle(write_tiny_checkpoint(tmp_path / "ours", model_type=model_type, tie_word_embeddings=tied))
    model.save_pretrained(tmp_path / "theirs", max_shard_size="40KB")
    assert_matches(tmp_path / "theirs", model, random_tokens(37))


@pytest.mark.oracle
@pytest.mark.parametrize("name", ["four experts", "mistral, sliding window", "llama 3"])
def test_greedy_tokens_are_those_of_transformers(tmp_path: Path, oracle: Any, name: str) -> None:
    prompts = [random_tokens(11, seed) for seed in range(20)]
    model = oracle(write_tiny_checkpoint(tmp_path, seed=1, sharp=SHARP, **(SHAPES | DENSE_SHAPES)[name]))
    with torch.inference_mode():
        settings = {"max_new_tokens": 64, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        expected = model.generate(torch.tensor(prompts), **settings)
        seen = model(expected, **({"output_router_logits": True} if name in SHAPES else {}))
    assert margin(seen.logits[:, 10:-1], 1) > 1e-3
    assert all(margin(logits, 2) > 1e-3 for logits in seen.get("router_logits", ()))
    assert greedy(load(tmp_path), prompts, 64) == expected.tolist()


def greedy(model: Decoder, prompts: list[list[int]], count: int) -> list[list[int]]:
    """Returns the prompts with their continuations; every step has all sequences."""
    tokens = [list(prompt) for prompt in prompts]
    pages = Pages(model, len(prompts), len(prompts[0]) + count)
    logits = pages.step([(n, 0, prompt) for n, prompt in enumerate(prompts)], every=False)
    for step in range(count):
        for sequence, token in zip(tokens, logits.argmax(-1).tolist(), strict=True):
            sequence.append(token)
        if step < count - 1:
            logits = pages.step([(n, len(known) - 1, known[-1:]) for n, known in enumerate(tokens)], every=False)
    return tokens


def margin(logits: Tensor, chosen: int) -> float:
    """Returns how far the last chosen logit is ahead of the first that was not chosen, in the closest row."""
    best = logits.topk(chosen + 1, dim=-1).values
    return float((best[..., -2] - best[..., -1]).min())


@dataclass(frozen=True, slots=True)
class WatchedRouter(Router):
    """A WatchedRouter notes by how much it preferred the experts that it chose."""

    margins: list[float] = field(kw_only=True)

    def __call__(self, x: Tensor, ops: Ops, addend: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.margins.append(margin(ops.linear(x, self.weight), self.top_k))
        return Router.__call__(self, x, ops, addend)


def watched(model: Decoder) -> tuple[Decoder, list[float]]:
    margins: list[float] = []

    def watch(router: Router) -> Router:
        return WatchedRouter(router.weight, router.top_k, margins=margins)

    layers = (
        layer if layer.moe.router is None else replace(layer, moe=replace(layer.moe, router=watch(layer.moe.router)))
        for layer in model.layers
    )
    return replace(model, layers=tuple(layers)), margins


@cache
def sharp_model(dtype: str, window: int | None = None, model_type: str = "mixtral") -> Decoder:
    with TemporaryDirectory() as directory:
        shape = {"model_type": model_type, "sliding_window": window, "num_local_experts": 8}
        write_tiny_checkpoint(Path(directory), sharp=SHARP, **shape)
        return load(Path(directory), dtype)


DTYPES = ["float32", pytest.param("float16", marks=needs_fbgemm)]
LENGTHS = (1, 5, 16, 23, 31)


@cache
def whole_and_alone(dtype: str, window: int | None, model_type: str) -> list[Tensor]:
    """Returns the logits of each prompt in one step of its own, through routers that were not in doubt."""
    model, margins = watched(sharp_model(dtype, window, model_type))
    prompts = [random_tokens(length, seed) for seed, length in enumerate(LENGTHS)]
    logits = [Pages(model, sequences=1, length=len(prompt)).prompt(prompt) for prompt in prompts]
    assert min(margins, default=1.0) > 1e-3
    return logits


@settings(derandomize=True, max_examples=15, deadline=None)
@given(steps=st.lists(st.tuples(*[st.integers(0, 12)] * len(LENGTHS)), max_size=6))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("window", "model_type"), [(None, "mixtral"), (6, "mixtral"), (6, "mistral")])
def test_batched_and_chunked_is_alone_and_whole(
    dtype: str, window: int | None, model_type: str, steps: list[tuple[int, ...]]
) -> None:
    """Takes so many tokens of each prompt in each step, and the rest in a last step."""
    model = sharp_model(dtype, window, model_type)
    prompts = [random_tokens(length, seed) for seed, length in enumerate(LENGTHS)]
    expected = whole_and_alone(dtype, window, model_type)
    pages = Pages(model, sequences=len(prompts), length=max(LENGTHS))
    done = [0] * len(prompts)
    for counts in (*steps, LENGTHS):
        taken = [(n, done[n], prompts[n][done[n] : done[n] + count]) for n, count in enumerate(counts)]
        rows = [row for row in taken if row[2]]
        logits = pages.step(rows) if rows else torch.empty(0, 256)
        wanted = [expected[n][start : start + len(tokens)] for n, start, tokens in rows]
        assert (logits - torch.cat([torch.empty(0, 256), *wanted])).abs().amax(-1).le(TOLERANCE * SHARP).all()
        done = [before + len(tokens) for before, (_, _, tokens) in zip(done, taken, strict=True)]
    assert tuple(done) == LENGTHS


def test_copies_of_one_expert_are_that_expert_alone(tmp_path: Path) -> None:
    def copy(tensors: Tensors) -> None:
        for name in tensors:
            prefix, expert, rest = name.partition(".experts.")
            if expert:
                tensors[name] = tensors[f"{prefix}.experts.0.{rest.split('.', 1)[1]}"].clone()

    def collapse(tensors: Tensors) -> None:
        for name in [name for name in tensors if "block_sparse_moe" in name]:
            layer, _, rest = name.partition("block_sparse_moe.experts.0.")
            weight = tensors.pop(name)
            if rest:
                tensors[f"{layer}mlp.{DENSE_NAMES[rest]}.weight"] = weight

    sparse, dense = write_tiny_checkpoint(tmp_path / "sparse"), write_tiny_checkpoint(tmp_path / "dense")
    change(sparse, copy)
    change(dense, collapse)
    (dense / "config.json").write_text(json.dumps(CONFIG | MISTRAL))
    logits = [Pages(load(each), sequences=1, length=20).prompt(random_tokens(20)) for each in (sparse, dense)]
    torch.testing.assert_close(*logits, atol=1e-5, rtol=0)


def test_only_the_wanted_rows_have_logits() -> None:
    model = sharp_model("float32")
    prompt = random_tokens(9)
    every = Pages(model, sequences=1, length=9).prompt(prompt)
    last = Pages(model, sequences=1, length=9).step([(0, 0, prompt)], every=False)
    assert last.shape == (1, 256)
    torch.testing.assert_close(last[0], every[-1])
    pages = Pages(model, sequences=1, length=9)
    batch = replace(pages.batch([(0, 0, prompt)]), logit_rows=torch.empty(0, dtype=torch.int64))
    assert model.forward(batch, pages.cache).shape == (0, 256)


@pytest.mark.parametrize(("model_type", "chosen"), [("mixtral", 2), ("mistral", 1)])
def test_the_seam_of_the_experts_sees_every_layer_once(model_type: str, chosen: int) -> None:
    model = sharp_model("float32", model_type=model_type)
    seen: list[tuple[ExpertWeights, tuple[int, ...]]] = []

    def experts(x: Tensor, ids: Tensor, weights: Tensor, expert_weights: ExpertWeights) -> Tensor:
        seen.append((expert_weights, tuple(ids.shape)))
        return model.ops.experts(x, ids, weights, expert_weights)

    watched_model = replace(model, ops=replace(model.ops, experts=experts))
    Pages(watched_model, sequences=1, length=9).prompt(random_tokens(9))
    assert [id(held) for held, _ in seen] == [id(layer.moe.experts) for layer in model.layers]
    assert {shape for _, shape in seen} == {(9, chosen)}


def test_bfloat16_is_near(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path, torch_dtype="bfloat16")
    prompt = random_tokens(20)
    exact = Pages(load(tmp_path), sequences=1, length=20).prompt(prompt)
    model = load(tmp_path, "bfloat16")
    logits = Pages(model, sequences=1, length=20).prompt(prompt)
    assert (model.activation_dtype, logits.dtype) == (torch.bfloat16, torch.float32)
    assert (logits - exact).abs().mean() < 0.05
