"""The real default model, built where `octavo serve` looks for it, says what its ancestors say."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from benchmarks.common.machine import user_cache
from octavo.model.config import ModelConfig
from octavo.model.demo.default_model import default_directory
from octavo.model.demo.dense_gguf import GGUFSource
from octavo.model.demo.pinned import SMOLLM2, obtain
from octavo.model.kernels.choice import select_backend
from octavo.model.loading.checkpoint import load_model
from octavo.model.weights.precision import Precision
from tests.model.pages import Pages
from tests.needs import default_model

pytestmark = [pytest.mark.demo, pytest.mark.oracle, pytest.mark.timeout(900)]  # the first run downloads

NEW_TOKENS = 32
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
QUESTIONS = (
    "What is the capital of France?",
    "Write a short poem about the sea.",
    "Explain in two sentences why the sky is blue.",
    "List three fruits that are red.",
    "Who wrote Hamlet, and when?",
    "Write a Python function that returns the larger of two numbers.",
    "Translate 'good morning' into Spanish.",
    "What should I pack for a week in the mountains?",
    "Summarise the plot of Cinderella in one paragraph.",
    "In 1969 people first walked on the Moon. How did they get there?",
)


def quiet(*_: object) -> None:
    """Reports nothing."""


@pytest.fixture(scope="module")
def directory() -> Path:
    return default_model()


@pytest.fixture(scope="module")
def prompts(directory: Path) -> list[list[int]]:
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    chat = "<|im_start|>system\n{}<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    return [tokenizer.encode(chat.format(SYSTEM, question)).ids for question in QUESTIONS]


@pytest.fixture(scope="module")
def answers(directory: Path, prompts: list[list[int]]) -> list[list[int]]:
    return octavo(directory, prompts)


def octavo(directory: Path, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Returns what Octavo generates in fp32, with all prompts in one batch."""
    config = ModelConfig.from_pretrained(directory)
    model = load_model(directory, config, select_backend(config, torch.device("cpu")), Precision.plain(torch.float32))
    pages = Pages(model, len(prompts), max(map(len, prompts)) + NEW_TOKENS, block_size=16)
    rows = [(index, 0, prompt) for index, prompt in enumerate(prompts)]
    results: list[list[int]] = [[] for _ in prompts]
    for _ in range(NEW_TOKENS):
        chosen = pages.step(rows, every=False).argmax(-1).tolist()
        rows = [(index, start + len(new), [token]) for (index, start, new), token in zip(rows, chosen, strict=True)]
        for result, token in zip(results, chosen, strict=True):
            result.append(token)
    return results


def generate(model: torch.nn.Module, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Returns transformers' greedy tokens for all prompts at once, padded on the left; none ends before NEW_TOKENS."""
    longest = max(map(len, prompts))
    padding = [longest - len(prompt) for prompt in prompts]
    ids = torch.tensor([[0] * count + list(prompt) for count, prompt in zip(padding, prompts, strict=True)])
    mask = torch.tensor([[0] * count + [1] * (longest - count) for count in padding])
    greedy = {"do_sample": False, "temperature": None, "top_p": None, "eos_token_id": -1, "pad_token_id": 0}
    return model.generate(ids, attention_mask=mask, max_new_tokens=NEW_TOKENS, **greedy)[:, longest:].tolist()


def test_greedy_tokens_equal_those_of_transformers_mixtral(
    directory: Path, prompts: list[list[int]], answers: list[list[int]]
) -> None:
    from transformers import MixtralForCausalLM

    model = MixtralForCausalLM.from_pretrained(directory, dtype=torch.float32)
    assert generate(model, prompts) == answers


def test_greedy_tokens_equal_those_of_the_dense_model(
    directory: Path, tmp_path: Path, prompts: list[list[int]], answers: list[list[int]]
) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    source = GGUFSource(obtain(SMOLLM2, None, default_directory(user_cache()).parent / "downloads", tmp_path, quiet))
    written = json.loads((directory / "config.json").read_text())
    shared = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    shared += ("num_key_value_heads", "rms_norm_eps", "rope_theta", "max_position_embeddings", "tie_word_embeddings")
    model = LlamaForCausalLM(LlamaConfig(**{name: written[name] for name in shared}))
    rounded = {name: torch.tensor(source.tensor(name)).bfloat16().float() for name in source.names}
    model.load_state_dict(rounded | {"lm_head.weight": rounded["model.embed_tokens.weight"]})
    assert generate(model, prompts) == answers
    model.save_pretrained(tmp_path / "dense")
    assert octavo(tmp_path / "dense", prompts) == answers


def test_answers_are_real_english(directory: Path, answers: list[list[int]]) -> None:
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    assert tokenizer.decode(answers[0]).startswith("The capital of France is Paris.")


def test_template_gives_the_prompts_of_these_tests(directory: Path, prompts: list[list[int]]) -> None:
    from transformers import AutoTokenizer

    messages = [{"role": "user", "content": QUESTIONS[0]}]
    tokenizer = AutoTokenizer.from_pretrained(directory)
    assert tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"] == prompts[0]
