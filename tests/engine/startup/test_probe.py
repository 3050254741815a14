"""The start shares out a GPU's memory, here that of a device that is made of numbers."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from octavo.engine.api import Progress
from octavo.engine.compute.graphs import Stage, stage_for
from octavo.engine.compute.runner import ModelRunner
from octavo.engine.config import EngineConfig
from octavo.engine.schedule.batch import Batch
from octavo.engine.startup import probe, start
from octavo.engine.startup.probe import Capacity, Probe
from octavo.engine.startup.sizing import GIB
from octavo.engine.startup.tiles import find
from octavo.model.config import ModelConfig, ModelError
from octavo.model.decoder import Decoder
from octavo.model.kv_cache import KVCache
from tests.engine.fake_gpu import FakeMemory


def config_of(checkpoint: Path, **changes: object) -> EngineConfig:
    return EngineConfig(
        str(checkpoint), **{"device": "cpu", "dtype": "float32", "max_num_batched_tokens": 64} | changes
    )


def ignore(progress: Progress) -> None:
    pass


def load(config: EngineConfig) -> Decoder:
    return start.load(find(config, ignore), ModelConfig.from_pretrained(Path(config.model)), ignore).model


def test_the_cache_gets_what_weights_steps_and_others_leave(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = FakeMemory().install(monkeypatch)
    config = config_of(checkpoint)
    capacity = Capacity.on_gpu(load(config), config, ignore)
    probe_bytes = 64 * 2 * 2 * 2 * 8 * 4  # tokens, keys and values, layers, heads, head_dim, bytes
    left = int(0.9 * device.total) - device.others - device.weights - device.step
    assert capacity.cache_bytes == left + probe_bytes  # The probe's own cache was part of the peak, and is gone.
    # Sequences for which there are no tokens need no graphs.
    assert (capacity.max_num_seqs, capacity.step_tokens) == (64, 64)
    assert device.calls[:2] == ["empty", "reset"], "what loading took and left is no part of the peak"


def test_a_cache_that_was_asked_for_is_taken_at_its_word(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeMemory().install(monkeypatch)
    config = config_of(checkpoint, kv_cache_memory=5 * GIB)
    assert Capacity.on_gpu(load(config), config, ignore).cache_bytes == 5 * GIB


def test_a_cache_that_would_take_a_steps_memory_is_refused(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others take 2 of the 80 GiB, the weights 50 and a step 3; the memory would run out while requests run."""
    FakeMemory().install(monkeypatch)
    config = config_of(checkpoint, kv_cache_memory=26 * GIB)
    with pytest.raises(ModelError, match="asks for 26.00 GiB and 25.00 GiB of memory are left: lower it"):
        Capacity.on_gpu(load(config), config, ignore)


def test_a_step_that_does_not_fit_is_said_at_start(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeMemory().install(monkeypatch)
    config = config_of(checkpoint)
    model = load(config)

    def run_out(self: ModelRunner, batch: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(ModelRunner, "run", run_out)
    with pytest.raises(ModelError, match="step of 64 tokens does not fit .* lower --max-num-batched-tokens, or choose"):
        Capacity.on_gpu(model, config, ignore)


def test_kernels_are_compiled_before_anybody_waits(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe runs steps of all sizes that decode, one with a row beside a piece of a prompt, and larger prompts."""
    config = config_of(checkpoint)
    steps: list[list[tuple[int, int]]] = []
    told: list[Progress] = []

    def run(self: ModelRunner, batch: Batch) -> None:
        assert all(len(row.blocks) * config.block_size >= row.end for row in batch.rows)
        steps.append([(row.end, len(row.tokens)) for row in batch.rows])

    monkeypatch.setattr(ModelRunner, "run", run)
    longest = 512, 1  # The longest sequence does not depend on how few tokens a step has.
    decoding = [[longest, *[(1, 1)] * (rows - 1)] for rows in (1, 2, 4)]
    mixed = [longest, (512, probe.MIXED_TOKENS)]
    model = load(config)
    Probe.of(model, config, 4).compile(4, told.append)
    assert steps == [*decoding, mixed]
    assert told[-1] == Progress("compiling kernels", 4, 4)
    steps.clear()
    Probe.of(model, config, 1025).compile(1025, ignore)
    assert steps[:3] == decoding
    assert steps[-4:] == [[longest, *[(1, 1)] * 255], mixed, [(512, 512)], [(512, 512)] * 2]


def test_models_whose_layers_are_not_fused_are_compiled_as_well(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some families' layers are a composition of kernels; torch's own operations compile nothing."""
    FakeMemory().install(monkeypatch)
    config, told = config_of(checkpoint), []
    monkeypatch.setattr(ModelRunner, "run", lambda self, batch: None)
    model = load(config)
    for ops in model.ops, replace(model.ops, capturable=True):
        told.clear()
        Capacity.on_gpu(replace(model, ops=ops), config, lambda progress: told.append(progress.what))
        assert bool(told) == ops.capturable


def test_what_is_compiled_is_what_serving_draws_with(checkpoint: Path) -> None:
    """Another kernel draws where the vocabulary is no multiple of 16."""
    config = config_of(checkpoint, sampled_vocab=250)
    assert Probe.of(load(config), config, 64).runner.sampled_vocab == 250


def test_the_largest_step_is_one_that_edits_logits_and_tells_of_them(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeMemory().install(monkeypatch)
    config, asked = config_of(checkpoint), []
    monkeypatch.setattr(ModelRunner, "run", lambda self, batch: asked.extend(row.params for row in batch.rows))
    Capacity.on_gpu(load(config), config, ignore)
    assert asked and all(params.logprobs and params.logit_bias and params.top_p < 1 for params in asked)


def test_where_tokens_are_computed_one_by_one_a_step_has_few(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeMemory().install(monkeypatch)
    config = config_of(checkpoint, max_num_batched_tokens=None, batch_invariant=True)
    monkeypatch.setattr(ModelRunner, "run", lambda self, batch: None)
    assert Capacity.on_gpu(load(config), config, ignore).step_tokens == 512


def test_memory_that_runs_out_while_loading_is_said(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_out(*given: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(start, "load_model", run_out)
    with pytest.raises(ModelError, match="ran out while the weights were loaded: free some, or choose a smaller"):
        load(config_of(checkpoint))


def test_the_graphs_room_is_no_cache(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeMemory().install(monkeypatch)
    config = config_of(checkpoint)
    model = load(config)
    without = Capacity.on_gpu(model, config, ignore).cache_bytes
    monkeypatch.setattr(probe, "_graph_bytes", lambda config, runner, max_num_seqs: 2 * GIB + max_num_seqs)
    assert Capacity.on_gpu(model, config, ignore).cache_bytes == without - 2 * GIB - 64


def test_each_graph_has_logits_and_block_tables_of_its_own(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(checkpoint, max_model_len=64)
    model = load(config)
    on_gpu = replace(model, device=torch.device("cuda"), ops=replace(model.ops, capturable=True))
    prober = ModelRunner(on_gpu, KVCache.allocate(model.config, 4, 16, torch.float32, "cpu"), 256)
    monkeypatch.setattr(probe, "CudaCapture", lambda device: None)
    monkeypatch.setattr(probe, "measure", lambda stage, rows, capture, free: (5000, 20))
    row = 4 * 256 + 4 * 4  # logits in float32, and the numbers of 4 blocks
    assert probe._graph_bytes(config, prober, 4) == 5000 + 2 * 20 + row * (2 - 1)  # graphs of 4, 1 and 2 rows
    assert probe._graph_bytes(replace(config, enforce_eager=True), prober, 4) == 0


def test_graphs_are_for_gpus_whose_operations_can_be_captured_and_can_be_declined(checkpoint: Path) -> None:
    config = config_of(checkpoint)
    model = load(config)
    on_gpu = replace(model, device=torch.device("cuda"), ops=replace(model.ops, capturable=True))
    cache = KVCache.allocate(model.config, 4, 16, torch.float32, "cpu")

    def stage(model: Decoder, **changes: object) -> Stage | None:
        return stage_for(replace(config, **changes), model, cache, 50)

    assert stage(on_gpu) == Stage(on_gpu, cache, 4)
    assert stage(on_gpu, enforce_eager=True) is None
    assert stage(replace(on_gpu, ops=model.ops)) is None
    assert stage(replace(on_gpu, device=model.device)) is None
