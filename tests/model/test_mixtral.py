"""The decoder against transformers' MixtralForCausalLM, and against itself: batched = alone, chunked = whole."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from model.checkpoint import load_model
from model.config import ModelConfig
from model.mixtral import Mixtral
from tests.model.pages import Pages
from tests.tiny import write_tiny_checkpoint

CPU = torch.device("cpu")
TOLERANCE = 1e-4

SHAPES: dict[str, dict[str, Any]] = {
    "four experts": {"num_local_experts": 4},
    "eight experts": {"num_local_experts": 8},
    "sixteen experts, four chosen": {"num_local_experts": 16, "num_experts_per_tok": 4},
    "one chosen": {"num_experts_per_tok": 1},
    "multi-head": {"num_key_value_heads": 4},
    "multi-query": {"num_key_value_heads": 1},
    "wide heads": {"head_dim": 16},
    "sliding window": {"sliding_window": 7},
    "tied": {"tie_word_embeddings": True},
}


def load(directory: Path, dtype: str = "float32") -> Mixtral:
    return load_model(directory, ModelConfig.from_pretrained(directory), CPU, dtype, lambda done, total: None)


def random_tokens(count: int, seed: int = 0, vocab: int = 256) -> list[int]:
    return torch.randint(3, vocab, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.fixture
def transformers_logits() -> Any:
    transformers = pytest.importorskip("transformers")

    def logits(directory: Path, tokens: list[int]) -> Tensor:
        oracle = transformers.MixtralForCausalLM.from_pretrained(directory, dtype=torch.float32)
        with torch.inference_mode():
            return oracle(torch.tensor([tokens])).logits[0]

    return logits


@pytest.mark.oracle
@pytest.mark.parametrize("overrides", SHAPES.values(), ids=SHAPES.keys())
def test_logits_match_transformers(tmp_path: Path, transformers_logits: Any, overrides: dict[str, Any]) -> None:
    write_tiny_checkpoint(tmp_path, **overrides)
    tokens = random_tokens(37)
    expected = transformers_logits(tmp_path, tokens)
    pages = Pages(load(tmp_path), sequences=2, length=40)
    whole = pages.prompt(tokens)
    one_by_one = torch.cat([pages.step([(1, n, [token])]) for n, token in enumerate(tokens)])
    assert (whole - expected).abs().max() < TOLERANCE
    assert (one_by_one - expected).abs().max() < TOLERANCE
