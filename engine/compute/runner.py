"""ModelRunner: a batch of plain numbers becomes tensors, goes through the model, and comes back as tokens."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from octavo.engine.api import TokenLogprobs
from octavo.engine.compute.grammar import Grammars
from octavo.engine.compute.graphs import Graphs
from octavo.engine.compute.sampler import Drawn, draw, score
from octavo.engine.compute.tensors import Drawing, to_forward_batch
from octavo.engine.schedule.batch import Batch, Row, Sample
from octavo.model.decoder import Decoder
from octavo.model.kv_cache import KVCache

SCORED_AT_ONCE = 64  # prompt tokens


@dataclass(frozen=True, slots=True)
class DeviceStep:
    """A step that the device computes, or has computed."""

    batch: Batch
    drawn: Drawn | None  # for `batch.sampled`; None when that is empty
    scored: Tensor  # [S, H] hidden states of all targets
    done: torch.Event | None  # after everything else; None on a CPU, where what was launched is done

    @property
    def drawing(self) -> Drawing | None:
        """What the next step may find pending."""
        if self.drawn is None:
            return None
        return Drawing(self.drawn.tokens, {row.id: place for place, row in enumerate(self.batch.sampled)})


@dataclass(frozen=True, slots=True)
class ModelRunner:
    """The model, its KV cache, and where the outputs stand in their grammars. Stateless but for the latter two."""

    model: Decoder
    cache: KVCache
    sampled_vocab: int
    grammars: Grammars = field(default_factory=Grammars)
    overlaps: bool = False  # whether `launch` returns before the device is done
    graphs: Graphs = field(default_factory=Graphs)

    def run(self, batch: Batch) -> list[Sample]:
        """Computes the rows' tokens into the cache; returns what came of each row of `batch.answered`."""
        return self.collect(self.launch(batch))

    def launch(self, batch: Batch, before: DeviceStep | None = None) -> DeviceStep:
        """Enqueues all that makes tokens of the batch; waits at most for masks of grammars, which the host computes.

        `before` is the step launched before this one, whose tokens are those that are pending here.
        """
        with torch.inference_mode():
            return self.draw(batch, *self.compute(batch, before))

    def compute(self, batch: Batch, before: DeviceStep | None = None) -> tuple[Tensor, Tensor]:
        """The rows' tokens into the cache; logits [R, V] of `batch.sampled`, hidden states [S, H] of all targets."""
        drawing = before.drawing if before is not None else None
        if (graph := self.graphs.find(batch)) is not None:
            logits = graph.logits(batch, drawing)
            return logits, logits[:0]  # it has no targets
        inputs = to_forward_batch(batch, self.cache.block_size, self.model.device, drawing)
        hidden = self.model.hidden(inputs, self.cache)  # [R + S, H]
        sampled = len(batch.sampled)
        return self.model.logits(hidden[:sampled]), hidden[sampled:]

    def draw(self, batch: Batch, logits: Tensor, scored: Tensor) -> DeviceStep:
        """The next tokens, as far as the rows' grammars allow. logits [R, V], scored [S, H]"""
        rows, drawn, done = batch.sampled, None, None
        if rows:
            drawn = draw(logits, rows, self.sampled_vocab, self.grammars.allowed(rows), self.model.ops.draw)
        if self.model.device.type == "cuda":
            done = torch.Event(self.model.device)
            done.record()
        return DeviceStep(batch, drawn, scored, done)

    def collect(self, step: DeviceStep) -> list[Sample]:
        """Waits for that step, and for none launched later; what came of each row of its batch that is answered."""
        if step.done is not None:
            step.done.synchronize()
        rows = step.batch.sampled
        tokens = iter(self.grammars.advance(rows, step.drawn.samples()) if step.drawn is not None else ())
        answers, scored = [], step.scored
        for row in step.batch.answered:
            answer = Sample(None) if row.output is None else next(tokens)
            if row.targets:
                answer = replace(answer, prompt_logprobs=self._scores(row, scored[: len(row.targets)]))
                scored = scored[len(row.targets) :]
            answers.append(answer)
        return answers

    @torch.inference_mode()
    def _scores(self, row: Row, hidden: Tensor) -> tuple[TokenLogprobs, ...]:
        """Of the row's targets, a few at a time: the logits of a long prompt would take gigabytes. hidden [S, H]"""
        found: list[TokenLogprobs] = []
        for start in range(0, len(row.targets), SCORED_AT_ONCE):
            part = slice(start, start + SCORED_AT_ONCE)
            logits = self.model.logits(hidden[part])[:, : self.sampled_vocab]
            found += score(logits, row.targets[part], row.params.prompt_logprobs or 0)
        return tuple(found)
