"""The engine starts, or says in a sentence why it cannot."""

from mmap import mmap
from pathlib import Path
from typing import Any

import pytest
import torch

from octavo.engine.api import ExpertShape, Progress, Ready, SamplingDefaults
from octavo.engine.compute.runner import DeviceStep
from octavo.engine.config import EngineConfig
from octavo.engine.engine import Engine
from octavo.engine.startup.build import build
from octavo.model.config import ModelError
from octavo.model.kernels.cpu.library import library
from octavo.model.weights.memory import Zeros, zeros_on
from octavo.model.weights.reserve import PAGE, Reserve
from tests.tiny import write_tiny_checkpoint

SMALL = {"threads": 1, "kv_cache_memory": 2**20, "max_num_batched_tokens": 64, "device": "cpu", "dtype": "float32"}


def start(directory: Path, **changes: Any) -> tuple[Engine[DeviceStep], Ready, list[Progress]]:
    """Builds a small engine; returns what was reported with it."""
    seen: list[Progress] = []
    engine, ready = build(EngineConfig(str(directory), **{**SMALL, **changes}), seen.append)
    return engine, ready, seen


def test_start_reports_its_progress_and_states_its_bounds(checkpoint: Path) -> None:
    engine, ready, seen = start(checkpoint)
    assert (seen[-1].what, seen[-1].done) == ("loading weights", seen[-1].total)
    per_token = 2 * 2 * 2 * 8 * 4  # keys and values, layers, heads, head_dim, bytes
    per_token += 2 * 2 * (1 + 2)  # layers, experts of a token, bytes of an id and of a weight
    cache_tokens = 2**20 // (per_token * 16) * 16
    assert (ready.max_model_len, ready.max_num_seqs, ready.max_waiting) == (512, 64, 1024)
    assert ready.eos_token_ids == (2,)
    assert any(f"KV cache of {cache_tokens:,} tokens" in line for line in ready.description)
    assert engine.scheduler.pool.num_blocks * 16 == cache_tokens
    assert ready.experts == engine.scheduler.limits.experts == ExpertShape((0, 1), 4, 2, identical=False)


def test_a_dense_model_has_no_experts_to_tell_of(tmp_path: Path) -> None:
    engine, ready, _ = start(write_tiny_checkpoint(tmp_path, model_type="mistral"))
    assert ready.experts is None and engine.runner.observer is None
    assert engine.scheduler.pool.num_blocks == 2**20 // (16 * 2 * 2 * 2 * 8 * 4)
    assert engine.runner.expert_use() == ()


@pytest.mark.parametrize(("asked", "cost"), [("auto", "half as fast"), ("int8", "unpacks its weights, slowly")])
def test_what_is_lost_without_the_kernels_is_said(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, asked: str, cost: str
) -> None:
    _, with_kernels, _ = start(checkpoint)
    monkeypatch.setattr("octavo.engine.startup.start.library", lambda: None)
    monkeypatch.setattr("octavo.engine.startup.start.why_missing", lambda: "were not built")
    _, ready, _ = start(checkpoint, quantization=asked, dtype="auto")
    (line,) = (line for line in ready.description if "The kernels in C were not built" in line)
    assert cost in line and "install a C compiler (gcc or clang), then run `" in line and "-m pip install" in line
    assert (library() is None) == any("The kernels in C" in line for line in with_kernels.description)


@pytest.mark.parametrize(("quantization", "lies_in_it"), [("int8", True), ("none", False)])
def test_the_reserve_is_for_quantised_weights(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, quantization: str, lies_in_it: bool
) -> None:
    reserve, given = Reserve(PAGE), []

    def noted(device: torch.device, memory: mmap | None) -> Zeros:
        given.append(memory)
        return zeros_on(device, memory)

    monkeypatch.setattr("octavo.engine.startup.start.zeros_on", noted)
    monkeypatch.setattr("octavo.engine.startup.build._reserve", lambda config, model_config: reserve)
    start(checkpoint, quantization=quantization)
    assert [memory is not None for memory in given] == [lies_in_it]
    assert not lies_in_it or any(given[0]), "weights lie in it: it is no longer all zeros"


def test_generation_config_travels_with_ready(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"temperature": 0.6, "top_p": 0.9, "eos_token_id": [2, 5]}')
    _, ready, _ = start(tmp_path)
    assert ready.defaults == SamplingDefaults(temperature=0.6, top_p=0.9)
    assert ready.eos_token_ids == (2, 5)


def test_the_token_budget_is_measured_unless_it_is_given(checkpoint: Path) -> None:
    engine, _, seen = start(checkpoint, max_num_batched_tokens=None, max_num_seqs=3)
    assert "measuring steps" in {progress.what for progress in seen}
    assert 3 <= engine.scheduler.limits.max_num_batched_tokens <= 2048


def test_the_context_shrinks_to_the_pool_unless_it_was_asked_for(checkpoint: Path) -> None:
    engine, ready, _ = start(checkpoint, kv_cache_memory=100 * 268)
    assert ready.max_model_len == engine.scheduler.pool.num_blocks * 16 == 96
    assert any("raise --kv-cache-memory" in line for line in ready.description)
    with pytest.raises(ModelError, match="--max-model-len 200 does not fit the KV cache of 96 tokens"):
        start(checkpoint, kv_cache_memory=100 * 268, max_model_len=200)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"max_model_len": 100_000}, "beyond the 512 positions"),
        ({"kv_cache_memory": 100}, "no room for a KV cache"),
        ({"kv_cache_memory": 2**60}, "memory are left: lower it"),
        ({"device": "abacus"}, "abacus"),
        ({"dtype": "int7"}, "int7"),
        ({"quantization": "int7"}, "int7"),
        ({"dtype": "bfloat16", "quantization": "int8"}, "leave out --dtype bfloat16"),
    ],
)
def test_what_the_user_can_mend_is_said_in_a_sentence(checkpoint: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        start(checkpoint, **changes)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_is_not_there_is_refused(checkpoint: Path) -> None:
    with pytest.raises(ModelError, match="--device cpu"):
        start(checkpoint, device="cuda")


def test_a_missing_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no directory"):
        start(tmp_path / "nothing")
