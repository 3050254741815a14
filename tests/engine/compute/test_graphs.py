"""Tests graphs of decoding steps, with a capture that runs a function again where a device would replay a graph."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from octavo.engine.api import Request, SamplingParams
from octavo.engine.compute.graphs import CudaCapture, Graphs, Stage, _stream, capture_all, graph_rows, measure
from octavo.engine.compute.runner import ModelRunner
from octavo.engine.engine import Engine
from octavo.engine.schedule.batch import PENDING, Batch, Row
from octavo.engine.schedule.blocks import BlockPool
from octavo.engine.schedule.scheduler import Scheduler
from octavo.model.config import ModelConfig
from octavo.model.decoder import Decoder
from octavo.model.kernels.choice import select_backend
from octavo.model.kv_cache import KVCache
from octavo.model.loading.checkpoint import load_model
from octavo.model.weights.precision import Precision
from tests.engine.fake_gpu import FakeCapture, FakeCuda, capturable
from tests.engine.fakes import Collector, limits, run
from tests.tiny import write_tiny_checkpoint

VOCAB, BLOCK_SIZE, BLOCKS = 256, 4, 8  # BLOCKS for each row: 32 tokens
SIZES = (1, 2, 4, 6)
PARAMS = SamplingParams(max_tokens=9, temperature=0.0)


@pytest.fixture(
    scope="module", params=[{}, {"sliding_window": 9}, {"model_type": "mistral"}], ids=["moe", "window", "dense"]
)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    directory: Path = write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"), seed=3, sharp=4.0, **request.param)
    config, precision = ModelConfig.from_pretrained(directory), Precision.plain(torch.float32)
    return capturable(load_model(directory, config, select_backend(config, torch.device("cpu")), precision))


def stage_of(model: Decoder, num_blocks: int = 100) -> Stage:
    return Stage(model, KVCache.allocate(model.config, num_blocks, BLOCK_SIZE, torch.float32, "cpu"), BLOCKS)


def runner_of(stage: Stage, graphs: Graphs) -> ModelRunner:
    return ModelRunner(stage.model, stage.cache, VOCAB, graphs=graphs)


def captured(stage: Stage, capture: FakeCapture) -> Graphs:
    return capture_all(stage, SIZES, capture, lambda progress: None)


def texts(count: int) -> list[list[int]]:
    """Returns texts whose lengths lie at and beside the borders of blocks."""
    generator = torch.Generator().manual_seed(count)
    lengths = (1, 3, 4, 5, 8, 9, 17, 30, 2)[:count]
    return [torch.randint(3, VOCAB, (length,), generator=generator).tolist() for length in lengths]


def prefill_and_decode(count: int) -> tuple[Batch, Batch]:
    """Returns two steps over `count` sequences: the first computes all but their last tokens, the second those."""
    fills, decodes = [], []
    for n, text in enumerate(texts(count)):
        blocks = tuple(range(10 * n + 1, 10 * n + 2 + (len(text) - 1) // BLOCK_SIZE))
        fills.append(Row(f"{n}", 0, tuple(text[:-1]), blocks, PARAMS, None))
        decodes.append(Row(f"{n}", len(text) - 1, (text[-1],), blocks, PARAMS, 0))
    return Batch(tuple(row for row in fills if row.tokens)), Batch(tuple(decodes))


@pytest.mark.parametrize("count", range(1, 10))
def test_a_graphs_logits_are_those_of_the_plain_step(model: Decoder, count: int) -> None:
    capture, stages = FakeCapture(), (stage_of(model), stage_of(model))
    plain, graphed = (runner_of(stages[0], Graphs()), runner_of(stages[1], captured(stages[1], capture)))
    fill, decode = prefill_and_decode(count)
    with torch.inference_mode():
        for runner in (plain, graphed):
            if fill.rows:
                runner.compute(fill)
        wanted, computed = plain.compute(decode).logits, graphed.compute(decode)
    got, scored = computed.logits, computed.scored
    assert got.shape == wanted.shape == (count, VOCAB) and len(scored) == 0
    assert (got - wanted).abs().max() < 1e-5
    assert capture.replays == [rows for rows in SIZES if rows >= count][:1]
    for one, other in zip(stages[0].cache.layers, stages[1].cache.layers, strict=True):
        assert (one.keys - other.keys).abs().max() < 1e-5 and (one.values - other.values).abs().max() < 1e-5


def test_a_graph_remembers_nothing_of_larger_and_longer_steps(model: Decoder) -> None:
    stage = stage_of(model)
    runner = runner_of(stage, captured(stage, FakeCapture()))
    fill, decode = prefill_and_decode(6)
    with torch.inference_mode():
        runner.compute(fill)
        first = runner.compute(decode).logits.clone()
        alone = runner.compute(Batch(decode.rows[5:])).logits.clone()
        few = runner.compute(Batch(decode.rows[2:5])).logits.clone()
    assert (alone - first[5:]).abs().max() < 1e-5
    assert (few - first[2:5]).abs().max() < 1e-5


def test_what_does_more_than_decode_has_no_graph(model: Decoder) -> None:
    graphs = captured(stage_of(model), FakeCapture())
    row = Row("a", 4, (7,), (0, 1), PARAMS, 1)
    assert graphs.find(Batch((row,))) is graphs.by_rows[1]
    assert graphs.find(Batch((row,) * 3)) is graphs.by_rows[4]
    assert graphs.find(Batch((replace(row, tokens=(PENDING,)),))) is graphs.by_rows[1]
    assert graphs.find(Batch((row,) * 7)) is None
    for other in (
        replace(row, tokens=(7, 8)),  # a chunk of a prompt
        replace(row, output=None),  # a chunk of one token
        replace(row, targets=(9,)),  # a prompt that is scored
    ):
        assert graphs.find(Batch((row, other))) is None
    assert Graphs().find(Batch((row,))) is None


def test_the_largest_is_captured_first_and_progress_is_told(model: Decoder) -> None:
    capture, seen = FakeCapture(), []
    graphs = capture_all(stage_of(model), SIZES, capture, seen.append)
    assert capture.captured == [6, 4, 2, 1]
    assert [(each.what, each.done, each.total) for each in seen] == [("capturing graphs", n, 4) for n in range(5)]
    assert graphs.description == ("CUDA graphs for steps of up to 6 sequences",)


def test_where_capturing_fails_there_are_none_and_a_line_says_so(model: Decoder) -> None:
    graphs = captured(stage_of(model), FakeCapture(fails_at=2))
    assert not graphs.by_rows
    (line,) = graphs.description
    assert "(CUDA error: out of luck)" in line and "slower" in line


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    yield FakeCuda().install(monkeypatch)
    _stream.cache_clear()


def test_all_captures_are_on_one_stream_beside_the_current_one(cuda: FakeCuda) -> None:
    """A trial uses the same stream: so what libraries keep for a stream exists once, and was measured."""
    current, out, device = cuda.current, torch.ones(1), torch.device("cuda")
    for _ in range(2):
        assert CudaCapture(device)(lambda: out)() is out
    assert len(set(cuda.captured_on)) == 1 and current not in cuda.captured_on and cuda.current is current
    assert not cuda.under_way


@pytest.mark.parametrize("valid", [True, False], ids=["for its own reasons", "invalid for the driver"])
def test_after_a_capture_that_failed_the_allocator_knows_of_none(cuda: FakeCuda, valid: bool) -> None:
    """Otherwise it would free no memory from then on. The graph that was captured earlier keeps the shared pool."""
    capture, results = CudaCapture(torch.device("cuda")), iter([torch.ones(1)] * 3)

    def run() -> torch.Tensor:
        try:
            return next(results)
        except StopIteration:
            raise RuntimeError("out of luck") from None

    capture(run)
    cuda.valid, current = valid, cuda.current
    with pytest.raises(RuntimeError, match="out of luck" if valid else "previous error during capture"):
        capture(run)
    assert not cuda.under_way and list(cuda.users.values()) == [
        2 if valid else 1
    ]  # the failed graph itself releases its use
    assert cuda.current is current


def test_what_the_largest_and_the_smallest_take_is_measured(model: Decoder) -> None:
    capture, free = FakeCapture(), iter([1000, 700, 650])
    assert measure(stage_of(model), SIZES, capture, lambda: next(free)) == (300, 50)
    assert capture.captured == [6, 1]
    assert measure(stage_of(model), SIZES, FakeCapture(fails_at=1), lambda: 5) == (0, 0)


@pytest.mark.parametrize(
    ("most", "expected"),
    [(1, (1,)), (3, (1, 2, 3)), (8, (1, 2, 4, 8)), (100, (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 100))],
)
def test_sizes_end_with_the_most_sequences_that_run(most: int, expected: tuple[int, ...]) -> None:
    assert graph_rows(most) == expected
    assert graph_rows(1000)[-1] == 256


def requests() -> list[Request]:
    found = []
    for n, text in enumerate(texts(9)):
        length = min(12, BLOCKS * BLOCK_SIZE - len(text))
        params = SamplingParams(
            max_tokens=length,
            temperature=0.7 * (n % 2),
            seed=n,
            logprobs=1 if n == 3 else None,
            stop_token_ids=tuple(range(0, VOCAB, 16)),
            repetition_penalty=1.3 if n == 5 else 1.0,
        )
        found.append(Request(f"{n}", tuple(text), params))
    return found


def serve(model: Decoder, graphed: bool, overlaps: bool) -> tuple[Collector, FakeCapture]:
    stage, capture, collector = stage_of(model, 24), FakeCapture(), Collector()
    runner = replace(runner_of(stage, captured(stage, capture) if graphed else Graphs()), overlaps=overlaps)
    bounds = limits(max_model_len=BLOCKS * BLOCK_SIZE, vocab_size=VOCAB, max_num_seqs=9, max_num_batched_tokens=16)
    core = Engine(Scheduler(BlockPool(24, BLOCK_SIZE), bounds), runner)
    for request in requests():
        assert core.add(request) is None
    run(core, collector)
    return collector, capture


def test_overlapped_steps_with_graphs_give_what_plain_ones_give(model: Decoder) -> None:
    plain, _ = serve(model, graphed=False, overlaps=False)
    for graphed, overlaps in ((True, False), (True, True), (False, True)):
        served, capture = serve(model, graphed, overlaps)
        assert served.tokens == plain.tokens
        assert all(served.reason(name) is plain.reason(name) for name in plain.ended)
        assert len(set(capture.replays)) > 2 or not graphed
