"""Measures the engine's own loop over random weights on a GPU, without a server: sections `host` and `generate`.

`host` shows what a step takes beside the GPU's own time: scheduling, launching, sampling, and waiting for the tokens.
`generate` compares the engine with transformers' `generate`, both in bfloat16, in the same shape with as many layers.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch

from benchmarks.common.batches import BLOCK
from benchmarks.common.engine import DecodeTiming, EngineDriver
from benchmarks.gpu.run import Measurement, Run
from benchmarks.gpu.steps import decode_floor, layers_note, model_of, served
from octavo.engine.compute.graphs import CudaCapture, Graphs, Stage, capture_all
from octavo.engine.compute.runner import ModelRunner
from octavo.engine.engine import Engine
from octavo.engine.schedule.blocks import BlockPool
from octavo.engine.schedule.scheduler import Limits, Scheduler
from octavo.model.config import ModelConfig
from octavo.model.decoder import Decoder
from octavo.model.kv_cache import KVCache

TIMING = DecodeTiming(prompt_tokens=128, warm_up=20, steps=25, parts=4)
SMALL_TIMING = DecodeTiming(prompt_tokens=3, warm_up=0, steps=1, parts=1)
POOL, SMALL_POOL = 32768, 256  # tokens of KV cache, all of which one sequence may have
STEP_TOKENS = 8192
HOST, SMALL_HOST = (1, 8, 64), (2,)  # sequences of a step
GENERATE, SMALL_GENERATE = (1, 32), (2,)  # sequences of a step
NEW_TOKENS, SMALL_NEW_TOKENS = 32, 2  # that transformers generates behind the first one


def driver_of(run: Run, model: Decoder, sequences: Sequence[int]) -> tuple[EngineDriver, Graphs]:
    """Returns an engine over the model, and its graphs for steps of so many sequences (none without a GPU)."""
    tokens, vocab_size = POOL if run.is_real else SMALL_POOL, model.config.vocab_size
    cache = KVCache.allocate(model.config, tokens // BLOCK, BLOCK, run.dtype, run.device)
    graphs = Graphs()
    if run.is_real:
        stage = Stage(model, cache, cache.num_blocks)
        graphs = capture_all(stage, sequences, CudaCapture(run.device), lambda progress: None)
        run.say("; ".join(graphs.description))
    runner = ModelRunner(model, cache, vocab_size, overlaps=run.is_real, graphs=graphs)
    limits = Limits(tokens, max(sequences), STEP_TOKENS, vocab_size)
    return EngineDriver(Engine(Scheduler(BlockPool(cache.num_blocks, BLOCK), limits), runner)), graphs


def measure_host(run: Run) -> None:
    """Measures the engine's step in every kind of weights that can be served."""
    for name in served(run):
        with run.attempt(f"engine in {name}"):
            _host(run, name)
        run.forget()


def _host(run: Run, name: str) -> None:
    model, counts = model_of(run, name), HOST if run.is_real else SMALL_HOST
    driver, graphs = driver_of(run, model, counts)
    for sequences in counts:
        with run.attempt(f"engine in {name}, B={sequences}"):
            wall = driver.decode(sequences, TIMING if run.is_real else SMALL_TIMING)
            device = _device_seconds(run, graphs, sequences)
            notes = [layers_note(run, model), "no graph" if device is None else _outside_gpu(wall.median, device)]
            run.add(
                Measurement(
                    section="the engine's step of B sequences by the clock on the wall; floor: the GPU alone",
                    name=f"{name}, B={sequences}",
                    floor=device,
                    time=wall,
                    note=", ".join(filter(None, notes)),
                )
            )


def _device_seconds(run: Run, graphs: Graphs, sequences: int) -> float | None:
    """Returns the seconds that the GPU takes for the last such step, from its graph; None if there is no graph."""
    graph = graphs.by_rows.get(sequences)
    return None if graph is None else run.clock.eager([graph.replay]).median


def _outside_gpu(wall: float, device: float) -> str:
    """Compares a step's seconds by the clock on the wall with the GPU's."""
    return f"{(wall - device) * 1e3:.2f} ms outside the GPU, which is idle for {1 - device / wall:.1%}"


def measure_generate(run: Run) -> None:
    """Measures a step of all sequences in the engine and in transformers; without transformers, a line says so."""
    if find_spec("transformers") is None:
        run.say("generate is left out: transformers is not installed")
        return
    from benchmarks.common.transformers_peer import random_mixtral

    counts = GENERATE if run.is_real else SMALL_GENERATE
    measured, shape = _ours(run, counts)
    run.forget()
    peer = random_mixtral(shape, run.dtype, run.device)
    run.say(f"made {shape.num_hidden_layers} layers for transformers")
    for sequences, measurement in zip(counts, measured, strict=True):
        with run.attempt(f"generate, B={sequences}"):
            add_fastest(run, measurement, peer, sequences)
        run.add(measurement)


def _ours(run: Run, counts: Sequence[int]) -> tuple[list[Measurement], ModelConfig]:
    """Returns the measurements and the model's shape; the model itself is freed when this returns."""
    model = model_of(run, "bf16")
    driver, _ = driver_of(run, model, counts)
    context = TIMING.prompt_tokens + NEW_TOKENS
    measured = [
        Measurement(
            section="generating, a step of B sequences by the clock on the wall",
            name=f"bf16, B={sequences}",
            floor=decode_floor(run, model, [(1, context)] * sequences),
            time=driver.decode(sequences, TIMING if run.is_real else SMALL_TIMING),
            note=layers_note(run, model),
        )
        for sequences in counts
    ]
    return measured, model.config


def add_fastest(run: Run, measurement: Measurement, peer: Any, sequences: int) -> None:
    """Adds the step of transformers' fastest experts to the measurement of ours."""
    from benchmarks.common.transformers_peer import seconds_per_token, try_experts

    timing, tokens = (TIMING, NEW_TOKENS) if run.is_real else (SMALL_TIMING, SMALL_NEW_TOKENS)
    prompts = torch.randint(peer.config.vocab_size, (sequences, timing.prompt_tokens), device=run.device)
    found = try_experts(peer, lambda: seconds_per_token(peer, prompts, tokens))
    name = min(found, key=lambda name: found[name].median)
    measurement.others[f"transformers generate ({name})"] = found[name]
