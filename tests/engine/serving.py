"""Serves requests with a real, tiny model, and keeps the logits that it sampled from."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from octavo.engine.api import Output, Request, TokenLogprobs
from octavo.engine.compute.grammar import Grammars
from octavo.engine.compute.runner import DeviceStep, ModelRunner
from octavo.engine.engine import Engine
from octavo.engine.schedule.batch import Batch, Sample
from octavo.engine.schedule.blocks import BlockPool
from octavo.engine.schedule.scheduler import Scheduler
from octavo.model.decoder import Decoder
from octavo.model.kv_cache import KVCache
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
            logits, *others = self.runner.compute(batch, before)
            kept = logits.clone()  # those of a graph are overwritten
            self.logits |= {(row.id, row.end - 1): each for row, each in zip(batch.sampled, kept, strict=True)}
            return self.runner.draw(batch, logits, *others)

    def collect(self, step: DeviceStep) -> list[Sample]:
        return self.runner.collect(step)


@dataclass
class Served:
    """Served holds what became of the requests."""

    tokens: dict[str, tuple[int, ...]]
    logprobs: dict[str, list[float]]
    ended: dict[str, Output]
    logits: dict[tuple[str, int], Tensor]
    preemptions: int
    prompt_logprobs: dict[str, tuple[TokenLogprobs, ...]]


def serve(
    model: Decoder, rounds: list[list[Request]], num_blocks: int = 256, overlaps: bool = False, **changes
) -> Served:
    """Serves each round to its end. The cache starts full of NaN, which nobody may ever read."""
    cache = KVCache.allocate(model.config, num_blocks, BLOCK_SIZE, model.activation_dtype, model.device)
    for layer in cache.layers:
        layer.key_slots.fill_(torch.nan)
        layer.value_slots.fill_(torch.nan)
    recorder = Recorder(ModelRunner(model, cache, VOCAB, overlaps=overlaps))
    bounds = limits(**{"max_num_seqs": 16, "max_num_batched_tokens": 512, "vocab_size": VOCAB, **changes})
    core, collector = Engine(Scheduler(BlockPool(num_blocks, BLOCK_SIZE), bounds), recorder), Collector()
    logprobs: dict[str, list[float]] = {}
    for each in rounds:
        for request in each:
            assert core.add(request) is None
        while core.has_work():
            for output in core.step().outputs:
                collector.take(output)
                logprobs.setdefault(output.id, []).extend(found.logprob for found in output.logprobs)
            check(core)
    preemptions = core.scheduler.stats().preemptions
    return Served(collector.tokens, logprobs, collector.ended, recorder.logits, preemptions, collector.prompt_logprobs)
