"""Tests that neither a request nor a model that returns NaN for it disturbs other requests."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from octavo.engine.api import FinishReason
from octavo.engine.compute.runner import ModelRunner
from octavo.engine.config import EngineConfig
from octavo.engine.engine import Engine
from octavo.engine.startup.build import build
from tests.engine.fakes import Collector, request, run
from tests.tiny import write_tiny_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


def build_engine(checkpoint: Path, sampled_vocab: int | None = None) -> Engine:
    config = EngineConfig(
        str(checkpoint),
        device="cpu",
        dtype="float32",
        threads=1,
        kv_cache_memory=2**20,
        max_num_batched_tokens=64,
        sampled_vocab=sampled_vocab,
    )
    return build(config, lambda progress: None)[0]


def test_padding_of_the_vocabulary_is_never_sampled(checkpoint):
    core = build_engine(checkpoint, sampled_vocab=10)
    collector = Collector()
    for index in range(4):
        core.add(request(f"r{index}", [3, 4], 20, seed=index, temperature=index / 2))
    run(core, collector)
    assert all(token < 10 for tokens in collector.tokens.values() for token in tokens)


@pytest.mark.parametrize("overlaps", [False, True], ids=["plain", "overlapped"])
def test_a_model_that_gives_nan_for_one_request_serves_the_others(checkpoint, overlaps):
    core = build_engine(checkpoint)
    loaded = core.runner
    assert isinstance(loaded, ModelRunner)
    core.runner = replace(loaded, overlaps=overlaps)
    before, after = Collector(), Collector()
    core.add(request("good", range(3, 30), 8, temperature=0.0))
    run(core, before)
    loaded.model.embedding.table[200] = torch.nan
    core.add(request("bad", [*range(3, 30), 200], 8))
    core.add(request("good", range(3, 30), 8, temperature=0.0))
    core.add(request("bad too", [200], 8, top_p=0.5, logprobs=3))
    run(core, after)
    assert {name: after.reason(name) for name in ("bad", "bad too")} == dict.fromkeys(
        ("bad", "bad too"), FinishReason.ERROR
    )
    assert after.tokens["good"] == before.tokens["good"]


def test_an_engine_whose_last_request_left_still_steps(checkpoint):
    core = build_engine(checkpoint)
    assert core.add(request("a", [1, 2, 3])) is None
    core.abort("a")
    assert not core.has_work()
    assert core.step().outputs == ()
