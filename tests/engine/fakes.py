"""Fakes a model without tensors: the next token is a pure function of the tokens that the cache really holds."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

import numpy as np
import torch

from octavo.engine.api import (
    ExpertShape,
    ExpertUse,
    FinishReason,
    Output,
    Request,
    Routes,
    SamplingParams,
    TokenLogprobs,
)
from octavo.engine.compute.expert_use import Observer
from octavo.engine.compute.grammar import Grammars
from octavo.engine.compute.routes import RouteStore
from octavo.engine.engine import Engine
from octavo.engine.schedule.batch import PENDING, Batch, Row, Sample
from octavo.engine.schedule.blocks import BlockPool
from octavo.engine.schedule.scheduler import Limits, Scheduler
from octavo.model import routes

VOCAB = 1000
MOST_SLOTS = 1 << 16


def next_token(prefix: Sequence[int]) -> int:
    return int.from_bytes(sha256(repr(tuple(prefix)).encode()).digest()[:4], "little") % VOCAB


def continuation(prompt: Sequence[int], count: int) -> tuple[int, ...]:
    """Returns what an engine generates for a single request with room for all of it."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(next_token(tokens))
    return tuple(tokens[len(prompt) :])


def score(prefix: Sequence[int], target: int) -> TokenLogprobs:
    """Returns what the fake model says of a token after a prefix."""
    return TokenLogprobs(-float(next_token([*prefix, target])), rank=1 + len(prefix))


def scores(prompt: Sequence[int]) -> tuple[TokenLogprobs, ...]:
    """Returns the scores of a whole prompt."""
    return tuple(score(prompt[:end], prompt[end]) for end in range(1, len(prompt)))


@dataclass
class FakeStep:
    """A FakeStep is a step of the fake model. Its samples are known at once, and told when they are asked for."""

    batch: Batch
    samples: list[Sample]
    routes: routes.Routes
    collected: bool = False

    def drawn(self, id: str) -> int:
        """Returns the token of a request, or any token where none could be drawn."""
        (token,) = (
            sample.token
            for row, sample in zip(self.batch.rows, self.samples, strict=True)
            if row.id == id and row.output is not None
        )
        return 0 if token is None else token


class FakeRunner:
    """A FakeRunner keeps token ids where a model keeps keys and values, and reads them through the rows' blocks.

    A wrong block, a block shared while it is written, or a token that was never computed changes what it generates.
    There are as many experts as tokens. A token is sent to the one of its id, with its position as the weight.
    """

    def __init__(self, block_size: int, overlaps: bool = False) -> None:
        self.block_size = block_size
        self.overlaps = overlaps
        self.grammars = Grammars()
        self.cache: dict[int, int] = {}  # slot -> token id
        self.computed = 0  # how many tokens all steps have computed
        self.steps: list[list[tuple[str, int]]] = []  # (id, number of tokens) of each row
        self.counted: dict[str, list[int]] = {}  # id -> the positions whose experts are counted
        ids, weights = np.full((MOST_SLOTS, 1, 1), -1, np.int16), np.full((MOST_SLOTS, 1, 1), np.nan, np.float16)
        self.used = 0  # how many positions were reported as counted
        self.observer = Observer(RouteStore(ids, weights, block_size), VOCAB)
        self._last: FakeStep | None = None

    def launch(self, batch: Batch, before: FakeStep | None = None) -> FakeStep:
        """Computes at once, with the tokens that were drawn in the step before."""
        if before is None:
            assert self._last is None or self._last.collected, "two steps under way, and the second knows of none"
        else:
            assert before is self._last and not before.collected, "`before` is the step under way"
        rows = [
            replace(row, tokens=tuple(self._known(row, token, before) for token in row.tokens)) for row in batch.rows
        ]
        self._last = FakeStep(batch, self.run(Batch(tuple(rows))), self._chosen(rows))
        return self._last

    @staticmethod
    def _chosen(rows: Sequence[Row]) -> routes.Routes:
        tokens = [token for row in rows for token in row.tokens]
        positions = [position for row in rows for position in range(row.start, row.end)]
        ids, weights = torch.tensor(tokens, dtype=torch.int16), torch.tensor(positions, dtype=torch.float16)
        return routes.Routes(ids[:, None, None], weights[:, None, None])

    @staticmethod
    def _known(row: Row, token: int, before: FakeStep | None) -> int:
        if token != PENDING:
            return token
        assert before is not None, "a pending token is drawn by the step before"
        return before.drawn(row.id)

    def collect(self, step: FakeStep) -> list[Sample]:
        assert not step.collected, "a step is collected once"
        step.collected = True
        finite = [sample.is_finite for sample in step.samples]
        told = self.observer.observe(step.batch.rows, step.routes, finite)
        return [replace(sample, routes=each) for sample, each in zip(step.samples, told, strict=True)]

    def run(self, batch: Batch) -> list[Sample]:
        assert batch.rows, "a runner is never given nothing"
        written = [slot for row in batch.rows for slot in self._slots(row)[row.start :]]
        assert len(written) == len(set(written)), "two rows write the same slot"
        for row in batch.rows:
            self.cache.update(zip(self._slots(row)[row.start :], row.tokens, strict=True))
        self.computed += len(written)
        self.steps.append([(row.id, len(row.tokens)) for row in batch.rows])
        for row in batch.rows:
            self.counted.setdefault(row.id, []).extend(range(row.first_new, row.end))
        return [self._sample(row) for row in batch.rows]

    def _sample(self, row: Row) -> Sample:
        tokens = [self.cache[slot] for slot in self._slots(row)]
        firsts = range(row.start + 1, row.start + 1 + len(row.targets))
        scores = tuple(score(tokens[:end], target) for end, target in zip(firsts, row.targets, strict=True))
        if row.output is None:
            return Sample(None, prompt_logprobs=scores)
        assert list(row.history) == (tokens if row.params.looks_back else []), "penalties see what the model sees"
        return Sample(next_token(tokens), prompt_logprobs=scores)

    def expert_use(self) -> tuple[ExpertUse, ...]:
        told = self.observer.report()
        self.used += sum(use.tokens for use in told)
        return told

    def _slots(self, row: Row) -> list[int]:
        """Returns the slots of the positions before row.end."""
        size = self.block_size
        assert len(row.blocks) == -(-row.end // size), "blocks are allocated as tokens need them"
        return [row.blocks[position // size] * size + position % size for position in range(row.end)]


def limits(**changes) -> Limits:
    defaults: dict[str, Any] = {
        "max_model_len": 256,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 32,
        "vocab_size": VOCAB,
    }
    defaults["experts"] = ExpertShape((0,), VOCAB, 1, identical=False)
    return Limits(**{**defaults, **changes})


def engine(num_blocks: int = 64, block_size: int = 4, overlaps: bool = False, **changes) -> Engine:
    return Engine(Scheduler(BlockPool(num_blocks, block_size), limits(**changes)), FakeRunner(block_size, overlaps))


def request(name: str, prompt: Sequence[int], max_tokens: int = 4, **params) -> Request:
    salt = params.pop("cache_salt", "")
    return Request(name, tuple(prompt), SamplingParams(max_tokens, **params), salt)


class Collector:
    """A Collector gathers outputs by request, and asserts that nothing follows a terminal output."""

    def __init__(self) -> None:
        self.tokens: dict[str, tuple[int, ...]] = {}
        self.ended: dict[str, Output] = {}
        self.prompt_logprobs: dict[str, tuple[TokenLogprobs, ...]] = {}
        self.routes: dict[str, Routes] = {}

    def take(self, output: Output | None) -> None:
        if output is None:
            return
        assert output.id not in self.ended, f"{output.id} spoke after its end"
        self.tokens[output.id] = self.tokens.get(output.id, ()) + output.token_ids
        self.prompt_logprobs[output.id] = self.prompt_logprobs.get(output.id, ()) + output.prompt_logprobs
        if output.routes is not None:
            self._route(output.id, output.routes)
        if output.finish_reason is not None:
            self.ended[output.id] = output

    def _route(self, name: str, new: Routes) -> None:
        """Takes the routes of the next positions."""
        known = self.routes.get(name, Routes(new.start, 0, b"", b""))
        assert new.count > 0 and new.start == known.start + known.count, "a position is told once, and in order"
        ids, weights = known.ids + new.ids, known.weights + new.weights
        self.routes[name] = Routes(known.start, known.count + new.count, ids, weights)

    def reason(self, name: str) -> FinishReason | None:
        return self.ended[name].finish_reason


def check(engine: Engine) -> None:
    """Asserts every invariant of scheduler and pool."""
    scheduler = engine.scheduler
    pool, sequences = scheduler.pool, scheduler.running + scheduler.waiting
    pool.check(seq.blocks for seq in sequences)
    assert [seq.arrival for seq in scheduler.running] == sorted(seq.arrival for seq in scheduler.running)
    assert [seq.arrival for seq in scheduler.waiting] == sorted(seq.arrival for seq in scheduler.waiting)
    assert len(scheduler.running) <= scheduler.max_running
    assert not any(seq.blocks or seq.computed or seq.pending for seq in scheduler.waiting)
    for seq in scheduler.running:
        assert 0 <= seq.computed <= len(seq.tokens) + seq.pending <= scheduler.max_len
        assert seq.pending <= engine.runner.overlaps
        assert len(seq.blocks) == pool.blocks_for(seq.computed)
        assert seq.published <= seq.computed // pool.block_size


def run(engine: Engine, collector: Collector, max_steps: int = 10_000) -> int:
    """Runs steps until there is no work; returns how many that took."""
    for step in range(max_steps):
        if not engine.has_work():
            return step
        for output in engine.step().outputs:
            collector.take(output)
        check(engine)
    raise AssertionError(f"still working after {max_steps} steps")
