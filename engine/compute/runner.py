"""ModelRunner makes tensors of a batch, runs the model on them, and returns the tokens that are drawn."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from octavo.engine.api import ExpertUse, TokenLogprobs
from octavo.engine.api import Routes as ToldRoutes
from octavo.engine.compute.control import addends
from octavo.engine.compute.edits import EditTables
from octavo.engine.compute.expert_use import Observer
from octavo.engine.compute.grammar import Grammars
from octavo.engine.compute.graphs import Graphs
from octavo.engine.compute.sampler import Drawn, draw, score
from octavo.engine.compute.tensors import PendingTokens, to_forward_batch
from octavo.engine.schedule.batch import Batch, Row, Sample
from octavo.model.decoder import Decoder
from octavo.model.kv_cache import KVCache
from octavo.model.routes import Routes

SCORED_AT_ONCE = 64  # prompt tokens


@dataclass(frozen=True, slots=True)
class Computed:
    """Computed is what the model makes of a batch, before anything is drawn."""

    logits: Tensor  # [R, V] of the rows that are sampled
    scored: Tensor  # [S, H] the hidden states that predict the targets
    finite: Tensor | None  # [T] bool, whether the state of each token is; on the host when the device has come so far
    routes: Routes | None  # of all tokens, on the host at the same time; None: nobody observes them


@dataclass(frozen=True, slots=True)
class DeviceStep:
    """A DeviceStep is a step that the device computes, or has computed."""

    batch: Batch
    drawn: Drawn | None  # the tokens of `batch.sampled`; None: no row is sampled
    scored: Tensor  # [S, H], as computed; the logits are not kept while later steps need the memory
    finite: Tensor | None  # [T], as computed; None: the tokens that are drawn tell
    routes: Routes | None  # as computed
    done: torch.Event | None  # comes after everything else; None on a CPU, which computes at once

    @property
    def pending(self) -> PendingTokens | None:
        """Returns the tokens that may be PENDING in the next step; returns None when no row is sampled."""
        if self.drawn is None:
            return None
        return PendingTokens(self.drawn.tokens, {row.id: place for place, row in enumerate(self.batch.sampled)})

    def are_finite(self) -> list[bool]:
        """Returns for each row whether all its states are, as far as that is known without the tokens."""
        if self.finite is None:
            return [True] * len(self.batch.rows)
        starts = accumulate((len(row.tokens) for row in self.batch.rows[:-1]), initial=0)
        found: list[bool] = np.logical_and.reduceat(self.finite.numpy(), list(starts)).tolist()
        return found


@dataclass(frozen=True, slots=True)
class ModelRunner:
    """A ModelRunner computes batches with a model. Its state is in the cache, the grammars, the edits, the observer."""

    model: Decoder
    cache: KVCache
    sampled_vocab: int
    grammars: Grammars = field(default_factory=Grammars)
    overlaps: bool = False  # whether the next step is launched before this one is collected
    graphs: Graphs = field(default_factory=Graphs)
    edits: EditTables = field(default_factory=EditTables)
    observer: Observer | None = None  # of the experts that tokens are sent to; None: nobody looks

    def run(self, batch: Batch) -> list[Sample]:
        """Computes the rows' tokens into the cache; returns a sample for each row."""
        return self.collect(self.launch(batch))

    def launch(self, batch: Batch, before: DeviceStep | None = None) -> DeviceStep:
        """Launches all that makes tokens of the batch. It waits for the masks of grammars, but not for the device.

        `before` is the step before this one. It draws the tokens that are PENDING here.
        """
        with torch.inference_mode():
            return self.draw(batch, self.compute(batch, before))

    def compute(self, batch: Batch, before: DeviceStep | None = None) -> Computed:
        """Computes the rows' tokens into the cache.

        A graph does not tell whether their states are finite; all its rows have logits, which tell it, too.
        """
        pending = before.pending if before is not None else None
        if (graph := self.graphs.find(batch)) is not None:
            logits, routes = graph.run(batch, pending)
            return Computed(logits, logits[:0], None, self._fetched(routes, len(batch.rows)))  # It has no targets.
        device = self.model.device
        inputs = to_forward_batch(batch, self.cache.block_size, device, pending)
        if (control := addends(batch, self.model.config, device)) is not None:
            inputs = replace(inputs, addends=control)
        states, routes = self.model.states(inputs, self.cache)  # [T, H]
        finite = states.sum(-1, dtype=torch.float32).isfinite().to("cpu", non_blocking=True)
        hidden, sampled = states[inputs.logit_rows], len(batch.sampled)  # [R + S, H]
        logits, routes = self.model.logits(hidden[:sampled]), self._fetched(routes, len(states))
        return Computed(logits, hidden[sampled:], finite, routes)

    def _fetched(self, routes: Routes | None, tokens: int) -> Routes | None:
        """Begins to copy the routes of the first tokens to the host, if somebody observes them."""
        return None if routes is None or self.observer is None else routes.to_host(tokens)

    def draw(self, batch: Batch, computed: Computed) -> DeviceStep:
        """Draws the next tokens from those that the rows' grammars allow."""
        rows, drawn, done = batch.sampled, None, None
        if rows:
            allowed = self.grammars.allowed(rows)
            drawn = draw(computed.logits, rows, self.sampled_vocab, allowed, self.model.ops.draw, self.edits)
        if self.model.device.type == "cuda":
            done = torch.Event(self.model.device)
            done.record()
        return DeviceStep(batch, drawn, computed.scored, computed.finite, computed.routes, done)

    def collect(self, step: DeviceStep) -> list[Sample]:
        """Waits for the step, and for none launched later; returns a sample for each row of its batch."""
        if step.done is not None:
            step.done.synchronize()
        rows = step.batch.sampled
        tokens = iter(self.grammars.advance(rows, step.drawn.samples()) if step.drawn is not None else ())
        finite = step.are_finite()
        answers, scored, routes = [], step.scored, self._observed(step, finite)
        for row, is_finite, told in zip(step.batch.rows, finite, routes, strict=True):
            answer = Sample(None) if row.output is None else next(tokens)
            if told is not None:
                answer = replace(answer, routes=told)
            if not is_finite:
                answer = replace(answer, is_finite=False)
            if row.targets and is_finite:
                answer = replace(answer, prompt_logprobs=self._scores(row, scored[: len(row.targets)]))
            scored = scored[len(row.targets) :]
            answers.append(answer)
        return answers

    def _observed(self, step: DeviceStep, finite: list[bool]) -> Sequence[ToldRoutes | None]:
        """Shows the step's routes to the observer; returns what each row tells of them."""
        rows = step.batch.rows
        if self.observer is None or step.routes is None:
            return (None,) * len(rows)
        return self.observer.observe(rows, step.routes, finite)

    def expert_use(self) -> tuple[ExpertUse, ...]:
        """Returns how the experts were used since the last time."""
        return () if self.observer is None else self.observer.report()

    @torch.inference_mode()
    def _scores(self, row: Row, hidden: Tensor) -> tuple[TokenLogprobs, ...]:
        """Returns the log-probabilities of the row's targets. hidden [S, H]

        They are computed for a few targets at a time: the logits of a long prompt would take gigabytes.
        """
        found: list[TokenLogprobs] = []
        for start in range(0, len(row.targets), SCORED_AT_ONCE):
            part = slice(start, start + SCORED_AT_ONCE)
            logits = self.model.logits(hidden[part])[:, : self.sampled_vocab]
            found += score(logits, row.targets[part], row.params.prompt_logprobs or 0)
        return tuple(found)
