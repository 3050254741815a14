"""Serves requests with a real, tiny model, and keeps the logits that it sampled from."""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from octavo.engine.api import ExpertUse, Output, Request, Routes, TokenLogprobs
from octavo.engine.compute.expert_use import Observer
from octavo.engine.compute.grammar import Grammars
from octavo.engine.compute.graphs import Graphs, Stage, capture_all
from octavo.engine.compute.routes import RouteStore
from octavo.engine.compute.runner import DeviceStep, ModelRunner
from octavo.engine.engine import Engine
from octavo.engine.schedule.batch import Batch, Sample
from octavo.engine.schedule.blocks import BlockPool
from octavo.engine.schedule.scheduler import Scheduler
from octavo.engine.startup.experts import expert_shape
from octavo.model.decoder import Decoder
from octavo.model.kv_cache import KVCache
from octavo.model.weights.memory import zeros_on
from tests.engine.fake_gpu import FakeCapture
from tests.engine.fakes import Collector, check, limits

VOCAB, BLOCK_SIZE = 256, 4


@dataclass
class Recorder:
    """A Recorder is a runner that keeps the logits that it sampled from, also where a step was in vain."""

    runner: ModelRunner
    logits: dict[tuple[str, int], Tensor] = field(default_factory=dict)  # (id, position) -> [V]

    @property
    def overlaps(self) -> bool:
        return self.runner.overlaps

    @property
    def grammars(self) -> Grammars:
        return self.runner.grammars

    def launch(self, batch: Batch, before: DeviceStep | None) -> DeviceStep:
        with torch.inference_mode():
            computed = self.runner.compute(batch, before)
            kept = computed.logits.clone()  # those of a graph are overwritten
            self.logits |= {(row.id, row.end - 1): each for row, each in zip(batch.sampled, kept, strict=True)}
            return self.runner.draw(batch, computed)

    def collect(self, step: DeviceStep) -> list[Sample]:
        return self.runner.collect(step)

    def expert_use(self) -> tuple[ExpertUse, ...]:
        return self.runner.expert_use()


def observer_of(model: Decoder, num_blocks: int, block_size: int = BLOCK_SIZE) -> Observer | None:
    """Returns an observer of a model that chooses experts. Its store starts full of what nobody may ever read."""
    store = RouteStore.of(model.config, num_blocks, block_size, zeros_on(torch.device("cpu")))
    if store is None:
        return None
    store.ids.fill(255)
    store.weights.fill(np.nan)
    return Observer(store, model.config.num_experts)


@dataclass
class Served:
    """Served holds what became of the requests."""

    tokens: dict[str, tuple[int, ...]]
    logprobs: dict[str, list[float]]
    ended: dict[str, Output]
    logits: dict[tuple[str, int], Tensor]
    preemptions: int
    prompt_logprobs: dict[str, tuple[TokenLogprobs, ...]]
    routes: dict[str, Routes]
    use: list[ExpertUse]


def serve(
    model: Decoder, rounds: list[list[Request]], num_blocks: int = 256, overlaps: bool = False, **changes
) -> Served:
    """Serves each round to its end. The cache starts full of NaN, which nobody may ever read."""
    cache = KVCache.allocate(model.config, num_blocks, BLOCK_SIZE, model.activation_dtype, model.device)
    for layer in cache.layers:
        layer.key_slots.fill_(torch.nan)
        layer.value_slots.fill_(torch.nan)
    stage = Stage(model, cache, num_blocks) if model.ops.capturable else None
    graphs = Graphs() if stage is None else capture_all(stage, (1, 2, 4, 8, 16), FakeCapture(), lambda progress: None)
    observer = observer_of(model, num_blocks)
    recorder = Recorder(ModelRunner(model, cache, VOCAB, overlaps=overlaps, graphs=graphs, observer=observer))
    defaults = {"max_num_seqs": 16, "max_num_batched_tokens": 512, "vocab_size": VOCAB, "experts": expert_shape(model)}
    bounds = limits(**defaults | changes)
    core, collector = Engine(Scheduler(BlockPool(num_blocks, BLOCK_SIZE), bounds), recorder), Collector()
    logprobs: dict[str, list[float]] = {}
    use: list[ExpertUse] = []
    for each in rounds:
        for request in each:
            assert core.add(request) is None
        while core.has_work():
            step = core.step()
            use += step.expert_use
            for output in step.outputs:
                collector.take(output)
                logprobs.setdefault(output.id, []).extend(found.logprob for found in output.logprobs)
            check(core)
    preemptions = core.scheduler.stats().preemptions
    return Served(
        collector.tokens,
        logprobs,
        collector.ended,
        recorder.logits,
        preemptions,
        collector.prompt_logprobs,
        collector.routes,
        use,
    )
