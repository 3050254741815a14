"""ModelRunner makes tensors of a batch, runs the model on them, and returns the tokens that are drawn."""

from dataclasses import dataclass, field, replace
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from octavo.engine.api import TokenLogprobs
from octavo.engine.compute.edits import EditTables
from octavo.engine.compute.grammar import Grammars
from octavo.engine.compute.graphs import Graphs
from octavo.engine.compute.sampler import Drawn, draw, score
from octavo.engine.compute.tensors import PendingTokens, to_forward_batch
from octavo.engine.schedule.batch import Batch, Row, Sample
from octavo.model.decoder import Decoder
from octavo.model.kv_cache import KVCache

SCORED_AT_ONCE = 64  # prompt tokens


@dataclass(frozen=True, slots=True)
class DeviceStep:
    """A DeviceStep is a step that the device computes, or has computed."""

    batch: Batch
    drawn: Drawn | None  # the tokens of `batch.sampled`; None: no row is sampled
    scored: Tensor  # [S, H] the hidden states that predict the targets
    finite: Tensor | None  # [T] bool, on the host when `done` has come; None: the tokens that are drawn tell
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
    """A ModelRunner computes batches with a model. Its only state is in the cache, the grammars and the edits."""

    model: Decoder
    cache: KVCache
    sampled_vocab: int
    grammars: Grammars = field(default_factory=Grammars)
    overlaps: bool = False  # whether the next step is launched before this one is collected
    graphs: Graphs = field(default_factory=Graphs)
    edits: EditTables = field(default_factory=EditTables)

    def run(self, batch: Batch) -> list[Sample]:
        """Computes the rows' tokens into the cache; returns a sample for each row."""
        return self.collect(self.launch(batch))

    def launch(self, batch: Batch, before: DeviceStep | None = None) -> DeviceStep:
        """Launches all that makes tokens of the batch. It waits for the masks of grammars, but not for the device.

        `before` is the step before this one. It draws the tokens that are PENDING here.
        """
        with torch.inference_mode():
            return self.draw(batch, *self.compute(batch, before))

    def compute(self, batch: Batch, before: DeviceStep | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Computes the rows' tokens into the cache.

        Returns the logits [R, V] of `batch.sampled`, the hidden states [S, H] that predict the targets, and whether the
        state of each token is finite [T]. A graph does not tell that; all its rows have logits, which tell it, too.
        """
        pending = before.pending if before is not None else None
        if (graph := self.graphs.find(batch)) is not None:
            logits = graph.logits(batch, pending)
            return logits, logits[:0], None  # a batch that a graph runs has no targets
        inputs = to_forward_batch(batch, self.cache.block_size, self.model.device, pending)
        states = self.model.states(inputs, self.cache)  # [T, H]
        finite = states.sum(-1, dtype=torch.float32).isfinite().to("cpu", non_blocking=True)
        hidden, sampled = states[inputs.logit_rows], len(batch.sampled)  # [R + S, H]
        return self.model.logits(hidden[:sampled]), hidden[sampled:], finite

    def draw(self, batch: Batch, logits: Tensor, scored: Tensor, finite: Tensor | None) -> DeviceStep:
        """Draws the next tokens from those that the rows' grammars allow. logits [R, V], scored [S, H], finite [T]"""
        rows, drawn, done = batch.sampled, None, None
        if rows:
            drawn = draw(logits, rows, self.sampled_vocab, self.grammars.allowed(rows), self.model.ops.draw, self.edits)
        if self.model.device.type == "cuda":
            done = torch.Event(self.model.device)
            done.record()
        return DeviceStep(batch, drawn, scored, finite, done)

    def collect(self, step: DeviceStep) -> list[Sample]:
        """Waits for the step, and for none launched later; returns a sample for each row of its batch."""
        if step.done is not None:
            step.done.synchronize()
        rows = step.batch.sampled
        tokens = iter(self.grammars.advance(rows, step.drawn.samples()) if step.drawn is not None else ())
        answers, scored = [], step.scored
        for row, is_finite in zip(step.batch.rows, step.are_finite(), strict=True):
            answer = Sample(None) if row.output is None else next(tokens)
            if not is_finite:
                answer = replace(answer, is_finite=False)
            if row.targets and is_finite:
                answer = replace(answer, prompt_logprobs=self._scores(row, scored[: len(row.targets)]))
            scored = scored[len(row.targets) :]
            answers.append(answer)
        return answers

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
