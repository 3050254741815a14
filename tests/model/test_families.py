"""Compares a tiny random model of each family with transformers: logits, whole and in pieces, and greedy answers."""

from pathlib import Path
from typing import Any

import pytest
import torch

from octavo.model.config import ModelConfig
from tests.model.checkpoints import load
from tests.model.pages import Pages

ATTENTION = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512}
SIZES: dict[str, Any] = {"vocab_size": 128, "hidden_size": 64, "num_hidden_layers": 3, **ATTENTION}
QWEN_EXPERTS = {"moe_intermediate_size": 48, "intermediate_size": 80, "num_experts": 8, "num_experts_per_tok": 3}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 1e4}
LONG_ROPE = {
    "rope_type": "longrope",
    "long_factor": [1.0 + n / 4 for n in range(8)],
    "short_factor": [1.0 + n / 16 for n in range(8)],
    "long_mscale": 1.24,
    "short_mscale": 1.2,
    "original_max_position_embeddings": 512,
    "rope_theta": 1e4,
}

CASES: dict[str, dict[str, Any]] = {
    "qwen3_moe": {"model_type": "qwen3_moe", "head_dim": 24, "norm_topk_prob": True, **QWEN_EXPERTS},
    "qwen3_moe, some layers dense": {
        "model_type": "qwen3_moe",
        "norm_topk_prob": False,
        "mlp_only_layers": [2],
        "decoder_sparse_step": 2,
        **QWEN_EXPERTS,
    },
    "qwen3_moe, yarn": {"model_type": "qwen3_moe", "rope_parameters": YARN, "norm_topk_prob": True, **QWEN_EXPERTS},
    "olmoe": {"model_type": "olmoe", "intermediate_size": 48, "num_experts": 8, "num_experts_per_tok": 3},
    "olmoe, clipped": {
        "model_type": "olmoe",
        "intermediate_size": 48,
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "clip_qkv": 0.8,
        "norm_topk_prob": True,
    },
    "qwen2_moe": {"model_type": "qwen2_moe", "shared_expert_intermediate_size": 96, **QWEN_EXPERTS},
    "granitemoe": {
        "model_type": "granitemoe",
        "intermediate_size": 48,
        "num_local_experts": 8,
        "num_experts_per_tok": 3,
        "embedding_multiplier": 12.0,
        "residual_multiplier": 0.22,
        "attention_multiplier": 0.0625,
        "logits_scaling": 6.0,
        "tie_word_embeddings": True,
    },
    "phimoe": {
        "model_type": "phimoe",
        "intermediate_size": 48,
        "num_local_experts": 8,
        "attention_bias": True,
        "lm_head_bias": True,
        "router_jitter_noise": 0.05,
    },
    "phimoe, longrope": {
        "model_type": "phimoe",
        "intermediate_size": 48,
        "num_local_experts": 8,
        "rope_parameters": LONG_ROPE,
        "sliding_window": 512,
    },
    "gpt_oss": {
        "model_type": "gpt_oss",
        "head_dim": 16,
        "intermediate_size": 48,
        "num_local_experts": 8,
        "num_experts_per_tok": 3,
        "sliding_window": 9,
        "rope_parameters": YARN | {"truncate": False, "beta_fast": 32.0, "beta_slow": 1.0},
    },
    "qwen2": {"model_type": "qwen2", "intermediate_size": 96},
    "qwen2, late windows": {
        "model_type": "qwen2",
        "intermediate_size": 96,
        "use_sliding_window": True,
        "sliding_window": 9,
        "max_window_layers": 1,
    },
    "qwen3": {"model_type": "qwen3", "intermediate_size": 96, "head_dim": 24, "tie_word_embeddings": True},
    "mistral": {"model_type": "mistral", "intermediate_size": 96, "sliding_window": 9, "head_dim": 24},
    "llama, biased": {"model_type": "llama", "intermediate_size": 96, "attention_bias": True},
}


def oracle(directory: Path, settings: dict[str, Any], stacked: bool = False) -> Any:
    """Returns transformers' model with random weights of every kind, saved in a directory."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(**(SIZES | settings), attn_implementation="eager", pad_token_id=0, eos_token_id=[])
    model = AutoModelForCausalLM.from_config(config).float().eval()
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "norm" in name and name.endswith("weight"):
            parameter.data = 1 + 0.2 * noise
        elif parameter.ndim < 2 or name.endswith("_bias"):
            parameter.data = 0.3 * noise
        else:
            parameter.data = noise * 1.5 / parameter.shape[-1] ** 0.5
    model.save_pretrained(directory, save_original_format=not stacked)
    return model


@pytest.mark.oracle
@pytest.mark.parametrize("settings", CASES.values(), ids=CASES)
def test_logits_and_greedy_answers_are_those_of_transformers(tmp_path: Path, settings: dict[str, Any]) -> None:
    theirs = oracle(tmp_path, settings)
    pages = Pages(load(tmp_path), sequences=4, length=104)
    tokens = torch.randint(0, 128, (40,), generator=torch.Generator().manual_seed(2)).tolist()
    with torch.inference_mode():
        expected = theirs(torch.tensor([tokens]), use_cache=False).logits[0]
        whole = theirs.generate(torch.tensor([tokens]), max_new_tokens=64, do_sample=False, eos_token_id=None)
    for sequence, cuts in enumerate(([40], [1] * 40, [17, 1, 22])):
        starts = [sum(cuts[:n]) for n in range(len(cuts))]
        parts = [pages.step([(sequence, at, tokens[at : at + cut])]) for at, cut in zip(starts, cuts, strict=True)]
        torch.testing.assert_close(torch.cat(parts), expected, atol=1e-4, rtol=0)
    assert greedy(pages, 3, tokens, 64) == whole[0].tolist()


@pytest.mark.oracle
@pytest.mark.parametrize("name", ["qwen3_moe", "olmoe", "qwen2_moe", "granitemoe", "phimoe"])
def test_the_layout_of_transformers_itself_is_read(tmp_path: Path, name: str) -> None:
    theirs = oracle(tmp_path, CASES[name], stacked=True)
    tokens = torch.randint(0, 128, (40,), generator=torch.Generator().manual_seed(2)).tolist()
    with torch.inference_mode():
        expected = theirs(torch.tensor([tokens]), use_cache=False).logits[0]
    torch.testing.assert_close(Pages(load(tmp_path), 1, 40).prompt(tokens), expected, atol=1e-4, rtol=0)


@pytest.mark.oracle
@pytest.mark.parametrize("settings", CASES.values(), ids=CASES)
def test_a_model_has_as_many_parameters_as_transformers_counts(tmp_path: Path, settings: dict[str, Any]) -> None:
    theirs = oracle(tmp_path, settings)
    assert ModelConfig.from_pretrained(tmp_path).num_parameters() == theirs.num_parameters()


def greedy(pages: Pages, sequence: int, prompt: list[int], count: int) -> list[int]:
    """Returns the prompt with its continuation."""
    tokens = list(prompt)
    logits = pages.step([(sequence, 0, prompt)], every=False)
    for _ in range(count - 1):
        tokens.append(int(logits[-1].argmax()))
        logits = pages.step([(sequence, len(tokens) - 1, tokens[-1:])], every=False)
    return [*tokens, int(logits[-1].argmax())]
