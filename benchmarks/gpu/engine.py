"""The engine over random weights on a GPU: its scheduler, its graphs, its overlapped loop, and no server around it."""

from dataclasses import dataclass
from time import perf_counter

import torch

from benchmarks.common.batches import BLOCK
from benchmarks.common.figures import Spread
from benchmarks.gpu.run import Run
from octavo.engine.api import Request, SamplingParams
from octavo.engine.compute.graphs import CudaCapture, Graphs, Stage, capture_all
from octavo.engine.compute.runner import ModelRunner
from octavo.engine.engine import Engine
from octavo.engine.schedule.blocks import BlockPool
from octavo.engine.schedule.scheduler import Limits, Scheduler
from octavo.model.decoder import Decoder
from octavo.model.kv_cache import KVCache

PROMPT, SMALL_PROMPT = 128, 3  # tokens of each sequence
WARM_UP, SMALL_WARM_UP = 20, 1  # steps
STEPS, SMALL_STEPS = 25, 1  # of a part that is timed
PARTS, SMALL_PARTS = 4, 1
POOL, SMALL_POOL = 32768, 256  # tokens of KV cache, as many as one sequence may have
STEP_TOKENS = 8192


@dataclass(frozen=True, slots=True)
class Driver:
    """An engine that decodes for the clock on the wall."""

    run: Run
    engine: Engine
    graphs: Graphs

    @classmethod
    def of(cls, run: Run, model: Decoder, sequences: tuple[int, ...]) -> "Driver":
        """With graphs for steps of so many sequences."""
        tokens, vocab = POOL if run.is_real else SMALL_POOL, model.config.vocab_size
        cache = KVCache.allocate(model.config, tokens // BLOCK, BLOCK, run.dtype, run.device)
        graphs = Graphs()
        if run.is_real:
            stage = Stage(model, cache, cache.num_blocks)
            graphs = capture_all(stage, sequences, CudaCapture(run.device), lambda progress: None)
            run.say("; ".join(graphs.description))
        runner = ModelRunner(model, cache, vocab, overlaps=run.is_real, graphs=graphs)
        limits = Limits(tokens, max(sequences), STEP_TOKENS, vocab)
        return cls(run, Engine(Scheduler(BlockPool(cache.num_blocks, BLOCK), limits), runner), graphs)

    def decode(self, sequences: int) -> Spread:
        """Seconds of a step in which so many sequences get a token each, by the clock on the wall."""
        real = self.run.is_real
        warm_up, steps, parts = (WARM_UP, STEPS, PARTS) if real else (SMALL_WARM_UP, SMALL_STEPS, SMALL_PARTS)
        names = self._begin(sequences, warm_up + parts * steps)
        for _ in range(warm_up):
            self.engine.step()
        seconds = []
        for _ in range(parts):
            started = perf_counter()
            for _ in range(steps):
                self.engine.step()
            seconds.append((perf_counter() - started) / steps)
        for name in names:
            self.engine.abort(name)
        while self.engine.has_work():
            self.engine.step()
        return Spread.over(seconds)

    def device_seconds(self, sequences: int) -> float | None:
        """What the device alone takes for the last such step; None without a graph, which could be replayed."""
        graph = self.graphs.by_rows.get(sequences)
        return None if graph is None else self.run.clock.eager([graph.replay]).median

    def _begin(self, sequences: int, tokens: int) -> list[str]:
        """Requests that generate more than so many tokens each; returns when all of them have begun to."""
        prompt = PROMPT if self.run.is_real else SMALL_PROMPT
        vocab = self.engine.scheduler.limits.vocab_size
        prompts = torch.randint(vocab, (sequences, prompt)).tolist()
        requests = [
            # Sampled: what is likeliest to a model of random weights goes in circles, and so would its experts.
            Request(f"{sequences}-{n}", tuple(ids), SamplingParams(max_tokens=2 * tokens + prompt, seed=n))
            for n, ids in enumerate(prompts)
        ]
        waited_for = {request.id for request in requests}
        for request in requests:
            if (refusal := self.engine.add(request)) is not None:
                raise RuntimeError(f"the engine refuses a request: {refusal.error}")
        while waited_for:
            waited_for -= {output.id for output in self.engine.step().outputs if output.token_ids}
        return [request.id for request in requests]
