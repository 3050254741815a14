"""The engine answers questions as its server's process would, and the same ones with the same tokens."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks.common.engine import Peer
from benchmarks.common.process import json_lines
from octavo.engine.config import EngineConfig
from tests.tiny import write_tiny_checkpoint

SMALL = {"device": "cpu", "dtype": "float32", "threads": 1, "kv_cache_memory": 2**20, "max_num_batched_tokens": 64}


def test_every_step_is_told_with_its_tokens(tmp_path: Path) -> None:
    peer = Peer(EngineConfig(str(write_tiny_checkpoint(tmp_path, model_type="mistral")), **SMALL))
    steps = peer.answer(streams=3, prompt_tokens=8, max_tokens=4)
    assert [tokens for _, tokens in steps] == [3, 3, 3, 3]
    seconds = [at for at, _ in steps]
    assert seconds == sorted(seconds)
    assert sum(tokens for _, tokens in peer.answer(streams=1, prompt_tokens=100, max_tokens=1)) == 1
    assert peer.engine.scheduler.stats().prefix_hits == 0


def test_over_lines_of_json(tmp_path: Path) -> None:
    model = write_tiny_checkpoint(tmp_path)
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    with json_lines([sys.executable, "-m", "benchmarks.common.engine", str(model), *flags]) as peer:
        hello = peer.read()
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
        peer.read()
    assert capfd.readouterr().err.startswith("Cannot serve")
