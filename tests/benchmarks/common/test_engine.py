"""A driven engine tells every step with its tokens; of a layer's experts those that tokens touch are counted."""

import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.common.engine import DecodeTiming, EngineDriver, LoadedEngine, RefusedError, measure_expert_layer
from benchmarks.common.process import json_lines
from octavo.engine.config import EngineConfig
from octavo.model.config import ModelConfig
from octavo.model.decoder import Decoder
from octavo.model.kernels.choice import select_backend
from octavo.model.kernels.cpu.library import Library, library
from octavo.model.loading.checkpoint import load_model
from octavo.model.weights.kinds import INT8
from octavo.model.weights.precision import Precision
from tests.tiny import write_tiny_checkpoint

SMALL = {"device": "cpu", "dtype": "float32", "threads": 1, "kv_cache_memory": 2**20, "max_num_batched_tokens": 64}


def small_driver(directory: Path) -> EngineDriver:
    model = write_tiny_checkpoint(directory, model_type="mistral")
    return LoadedEngine.build(EngineConfig(str(model), **SMALL)).driver


def test_every_step_is_told_with_its_tokens(tmp_path: Path) -> None:
    driver = small_driver(tmp_path)
    ends = driver.answer(streams=3, prompt_tokens=8, max_tokens=4)
    assert [tokens for _, tokens in ends] == [3, 3, 3, 3]
    seconds = [at for at, _ in ends]
    assert seconds == sorted(seconds)
    assert sum(tokens for _, tokens in driver.answer(streams=1, prompt_tokens=100, max_tokens=1)) == 1
    assert driver.engine.scheduler.stats().prefix_hits == 0


def test_decoding_is_timed_in_parts_and_leaves_no_work(tmp_path: Path) -> None:
    driver = small_driver(tmp_path)
    spread = driver.decode(2, DecodeTiming(prompt_tokens=4, warm_up=1, steps=2, parts=3))
    assert 0 < spread.low <= spread.median <= spread.high
    assert not driver.engine.has_work()


def test_a_refused_prompt_is_told(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="refuses a prompt"):
        small_driver(tmp_path).answer(streams=1, prompt_tokens=100_000, max_tokens=1)


def test_over_lines_of_json(tmp_path: Path) -> None:
    model = write_tiny_checkpoint(tmp_path)
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    with json_lines([sys.executable, "-m", "benchmarks.common.engine", str(model), *flags]) as peer:
        hello = peer.receive()
        assert "fp32 weights" in hello["description"][0]
        assert hello["load_seconds"] > 0
        answer = peer.ask({"streams": 2, "prompt_tokens": 4, "max_tokens": 3})
    assert [tokens for _, tokens in answer["steps"]] == [2, 2, 2]
    if sys.platform == "linux":
        assert answer["anonymous_bytes"] > 10_000_000


def test_a_model_that_cannot_be_served_is_one_sentence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    command = [sys.executable, "-m", "benchmarks.common.engine", str(tmp_path)]
    with json_lines(command) as peer, pytest.raises(SystemExit, match="has ended"):
        peer.receive()
    assert capfd.readouterr().err.startswith("Cannot serve")


def load(directory: Path, precision: Precision) -> Decoder:
    config = ModelConfig.from_pretrained(write_tiny_checkpoint(directory))
    return load_model(directory, config, select_backend(config, torch.device("cpu")), precision)


def test_distinct_experts_are_counted_once(tmp_path: Path) -> None:
    model = load(tmp_path, Precision.plain(torch.float32))
    config = model.config
    expert = 4 * 3 * config.hidden_size * config.intermediate_size
    seconds, nbytes = measure_expert_layer(model, 1)
    assert seconds > 0
    assert nbytes == config.num_experts_per_tok * expert
    assert measure_expert_layer(model, 64)[1] == pytest.approx(config.num_experts * expert)


@pytest.mark.skipif(library() is None, reason="the C kernels were not built")
def test_kernels_take_as_many_threads_as_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    monkeypatch.setattr(Library, "follow_torch", lambda self: taken.append(torch.get_num_threads()))
    measure_expert_layer(load(tmp_path, Precision(torch.float32, INT8, INT8)), 1)
    assert set(taken) == {torch.get_num_threads()}
