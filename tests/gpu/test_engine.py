"""Tests the engine on a GPU: batched = alone, chunked = whole, preempted = not, cached = cold, overlapped = plain.

With a CUDA device everything is real: the kernels, the stream, the captured graphs. Without one, torch's operations
take the kernels' place, except in one test that interprets them, and a graph is replayed by running it again.
"""

import gc
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from octavo.engine.api import FinishReason, Progress, Request, SamplingParams
from octavo.engine.compute.graphs import Capture, CudaCapture, Graphs, Stage, capture_all
from octavo.engine.compute.runner import ModelRunner
from octavo.engine.config import EngineConfig
from octavo.engine.engine import Engine
from octavo.engine.schedule.blocks import BlockPool
from octavo.engine.schedule.scheduler import Scheduler
from octavo.engine.startup.build import build
from octavo.model.config import ModelConfig
from octavo.model.decoder import Decoder
from octavo.model.kernels.choice import select_backend
from octavo.model.kv_cache import KVCache
from octavo.model.layers import RowNorm
from octavo.model.loading.checkpoint import load_model
from octavo.model.ops.invariant import Invariance
from octavo.model.weights.precision import Precision
from tests.engine.fake_gpu import FakeCapture, capturable
from tests.engine.fakes import Collector, limits, run
from tests.engine.serving import Recorder
from tests.gpu.models import BLOCK_SIZE, SHAPE, interpreted, load
from tests.tiny import write_tiny_checkpoint

VOCAB, LONGEST = 256, 64
ROUNDING = 1e-3  # how far logits may differ, of which the likeliest is about 10
SIZES = (1, 2, 4)  # rows of the graphs


@pytest.fixture(scope="module")
def model(device: torch.device, tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    loaded = load(tmp_path_factory.mktemp("tiny"), device)
    return loaded if device.type == "cuda" else capturable(loaded)


def requests() -> list[Request]:
    """Every other one is greedy; some share a beginning, one looks back, one has its log-probabilities told."""
    generator = torch.Generator().manual_seed(1)
    shared = torch.randint(3, VOCAB, (BLOCK_SIZE,), generator=generator).tolist()
    found = []
    for n, length in enumerate((1, 5, 18, 3, 20)):
        text = torch.randint(3, VOCAB, (length,), generator=generator).tolist()
        params = SamplingParams(
            max_tokens=24,
            temperature=0.8 * (n % 2),
            top_p=0.9 if n == 3 else 1.0,
            seed=n,
            logprobs=2 if n == 2 else None,
            repetition_penalty=1.2 if n == 1 else 1.0,
        )
        found.append(Request(f"{n}", tuple(shared * (n in (2, 4)) + text), params))
    return found


@dataclass(frozen=True)
class Way:
    """A Way says how the requests are served."""

    num_blocks: int = 32
    step_tokens: int = 128
    sequences: int = 8
    caching: bool = False
    overlaps: bool = False
    graphed: bool = False


WAYS = {
    "batched": Way(),
    "chunked": Way(step_tokens=7),
    "preempted": Way(num_blocks=7),
    "shared": Way(caching=True),
    "overlapped": Way(overlaps=True),
    "graphs": Way(graphed=True),
    "everything at once": Way(7, 9, 8, True, True, True),
}


@dataclass
class Served:
    collector: Collector
    logits: dict[tuple[str, int], Tensor]
    preemptions: int
    cached: int


def graphs_of(model: Decoder, cache: KVCache, sizes: tuple[int, ...]) -> Graphs:
    capture: Capture = CudaCapture(model.device) if model.device.type == "cuda" else FakeCapture()
    graphs = capture_all(Stage(model, cache, LONGEST // BLOCK_SIZE), sizes, capture, lambda progress: None)
    assert tuple(sorted(graphs.by_rows)) == sizes, graphs.description
    return graphs


def engine_of(model: Decoder, way: Way) -> Engine:
    """Its cache is full of NaN, which nobody may ever read."""
    cache = KVCache.allocate(model.config, way.num_blocks, BLOCK_SIZE, torch.float32, model.device)
    graphs = graphs_of(model, cache, SIZES) if way.graphed else Graphs()
    for layer in cache.layers:
        layer.keys.fill_(torch.nan)
        layer.values.fill_(torch.nan)
    recorder = Recorder(ModelRunner(model, cache, VOCAB, overlaps=way.overlaps, graphs=graphs))
    bounds = limits(
        max_model_len=LONGEST,
        vocab_size=VOCAB,
        max_num_seqs=way.sequences,
        max_num_batched_tokens=way.step_tokens,
        enable_prefix_caching=way.caching,
    )
    return Engine(Scheduler(BlockPool(way.num_blocks, BLOCK_SIZE), bounds), recorder)


def serve(model: Decoder, way: Way, asked: Sequence[Request], rounds: int = 1) -> Served:
    """Serves each round to its end."""
    core = engine_of(model, way)
    assert isinstance(core.runner, Recorder)
    for _ in range(rounds):
        collector = Collector()
        for request in asked:
            assert core.add(request) is None
        run(core, collector)
    stats = core.scheduler.stats()
    return Served(collector, core.runner.logits, stats.preemptions, stats.prefix_hits)


@pytest.fixture(scope="module")
def alone(model: Decoder) -> Served:
    return serve(model, Way(sequences=1), requests())


@pytest.mark.parametrize("way", WAYS)
def test_tokens_and_logits_do_not_depend_on_the_way(model: Decoder, alone: Served, way: str) -> None:
    served = serve(model, WAYS[way], requests())
    same(served, alone)
    assert (served.preemptions > 0) == (WAYS[way].num_blocks == 7)
    assert (served.cached > 0) == WAYS[way].caching


def test_a_cached_prefix_is_as_good_as_a_cold_one(model: Decoder, alone: Served) -> None:
    warm = serve(model, replace(WAYS["everything at once"], num_blocks=32, step_tokens=128), requests(), rounds=2)
    assert warm.cached > 3 * BLOCK_SIZE
    same(warm, alone)


def test_row_by_row_logits_are_the_same_bits_in_any_company(device: torch.device, tmp_path: Path) -> None:
    """Computes what --batch-invariant serves on a GPU."""
    config = ModelConfig.from_pretrained(write_tiny_checkpoint(tmp_path, seed=3, sharp=4.0, **SHAPE))
    backend = replace(select_backend(config, device, Invariance.FULL), norm=RowNorm)
    model = load_model(tmp_path, config, backend, Precision.plain(torch.float32))
    assert all(isinstance(layer.post_norm, RowNorm) for layer in model.layers)
    alone, together = (serve(model, way, requests()).logits for way in (Way(sequences=1), Way()))
    for where, logits in alone.items():
        assert together[where].equal(logits), where


def test_a_graph_of_the_kernels_gives_what_torch_computes(device: torch.device, tmp_path: Path) -> None:
    """Runs three rows in a graph of four, beside and behind the border of a block; torch writes the cache, too."""
    loaded = load(tmp_path, device, num_hidden_layers=1, intermediate_size=32, num_local_experts=2)
    core = engine_of(capturable(loaded), Way())
    for n in range(3):
        core.add(Request(f"{n}", (7 + n,) * (15 + n), SamplingParams(max_tokens=3, temperature=0.0)))
    core.step()
    decode = core.scheduler.schedule()
    assert isinstance(core.runner, Recorder)
    plain = core.runner.runner
    on_kernels = loaded if device.type == "cuda" else interpreted(loaded)
    graphed = replace(plain, graphs=graphs_of(on_kernels, plain.cache, (4,)))
    with torch.inference_mode():
        got, wanted = graphed.compute(decode).logits.clone(), plain.compute(decode).logits
    assert got.shape == wanted.shape == (3, VOCAB)
    assert (got - wanted).abs().max() < ROUNDING


def started(directory: Path, eager: bool) -> tuple[list[str], list[int], Collector]:
    """Returns what the engine says of graphs while it starts, the graphs that it has, and what it serves."""
    config = EngineConfig(
        str(directory),
        dtype="bfloat16",
        device="cuda",
        max_num_seqs=5,
        max_num_batched_tokens=256,
        kv_cache_memory=64 << 20,  # not a part of what is free: other tests have the device's memory, too
        enforce_eager=eager,
    )
    seen: list[Progress] = []
    core, ready = build(config, seen.append)
    assert isinstance(core.runner, ModelRunner) and core.runner.overlaps
    collector = Collector()
    for request in requests():
        assert core.add(request) is None
    run(core, collector)
    said = [*(each.what for each in seen), *ready.description]
    return [line for line in said if "graphs" in line], sorted(core.runner.graphs.by_rows), collector


@pytest.mark.cuda
@pytest.mark.parametrize("eager", [False, True])
def test_it_starts_with_graphs_unless_it_is_told_not_to(tmp_path: Path, eager: bool) -> None:
    """Starts like `octavo serve`, with sizing by trial, captures and overlapped steps."""
    said, rows, collector = started(write_tiny_checkpoint(tmp_path, seed=3, sharp=4.0, **SHAPE), eager)
    gc.collect()
    torch.cuda.empty_cache()
    assert rows == ([] if eager else [1, 2, 4, 5])
    assert set(said) == (set() if eager else {"capturing graphs", "CUDA graphs for steps of up to 5 sequences"})
    assert {output.finish_reason for output in collector.ended.values()} == {FinishReason.LENGTH}


@pytest.mark.cuda
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")  # says torch, once
def test_launching_a_step_waits_for_nothing(model: Decoder) -> None:
    """Neither a step with prompts waits, nor one in which all decode: torch raises where it would have to wait."""
    core, before = engine_of(model, Way(overlaps=True, graphed=True)), None
    for request in requests()[::2]:  # without the one that looks back
        assert core.add(request) is None
    for _ in range(4):
        batch = core.scheduler.schedule()
        torch.cuda.set_sync_debug_mode("error")
        try:
            before = core.runner.launch(batch, before)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()


def same(served: Served, alone: Served) -> None:
    assert served.collector.tokens == alone.collector.tokens
    for where, logits in alone.logits.items():
        assert (served.logits[where] - logits).abs().max() < ROUNDING, where
