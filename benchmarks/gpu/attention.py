"""Paged attention of one layer on a GPU: decoding at several contexts, prefill, and both in one step."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from benchmarks.common.batches import BLOCK, Rows, batch_of, random_cache, seen
from benchmarks.gpu.clock import Calls
from benchmarks.gpu.compare import difference, poisoned
from benchmarks.gpu.run import Run
from benchmarks.gpu.table import Measured
from octavo.model.batch import ForwardBatch
from octavo.model.kernels.gpu.attention import attend
from octavo.model.kernels.gpu.attention_plan import AttentionTiles, plan
from octavo.model.kv_cache import KVCache, LayerCache

DECODES = ((1, 1024), (1, 32768), (8, 4096), (32, 2048), (64, 1024), (256, 1024))  # sequences, context
PREFILLS = ((2048, 0), (2048, 30720), (8192, 0))  # new tokens, tokens before
MIXED = [(2048, 2048)] + [(1, 1024)] * 64
SMALL_DECODES, SMALL_PREFILLS, SMALL_MIXED = ((2, 40),), ((8, 16),), [(12, 20), (1, 30)]
CACHED = 1 << 28  # bytes of pages that are gone through in turn, several times what an L2 holds
COMPARED = 16  # tokens
ALLOWED = 0.01  # weights and values are multiplied in bfloat16


@dataclass(frozen=True, slots=True)
class Step:
    """One step's queries, and several layers whose keys and values they may look at."""

    run: Run
    rows: Rows
    batch: ForwardBatch
    cache: KVCache
    q: Tensor  # [T, Hq, D]

    @classmethod
    def of(cls, run: Run, rows: Rows) -> "Step":
        """Random ones."""
        config = run.config
        batch, blocks = batch_of(rows, config.vocab_size, run.device)
        one = KVCache.bytes_per_token(replace(config, num_hidden_layers=1), run.dtype) * blocks * BLOCK
        layers = max(1, min(config.num_hidden_layers, CACHED // one)) if run.is_real else 1
        cache = random_cache(replace(config, num_hidden_layers=layers), blocks, run.dtype, run.device)
        shape = len(batch.tokens), config.num_attention_heads, config.head_dim
        return cls(run, rows, batch, cache, torch.randn(shape, device=run.device).to(run.dtype))

    def tiles(self) -> AttentionTiles:
        """As the table has it."""
        return AttentionTiles.of(self.run.config, self.run.dtype, self.run.arch, self.run.processors)

    def calls(self, tiles: AttentionTiles) -> Calls:
        planned = plan(self.batch, self.cache, None, tiles)
        return [lambda pages=pages: attend(self.q, pages, planned) for pages in self.cache.layers]

    def floor(self) -> float:
        """Seconds: keys and values are read, queries too, outputs written; two products with each key seen."""
        layer = replace(self.run.config, num_hidden_layers=1)
        cached = KVCache.bytes_per_token(layer, self.run.dtype) * sum(end for _, end in self.rows)
        heads, size = self.q.shape[1:]
        return self.run.ceilings.floor(cached + 2 * self.q.nbytes, 4.0 * heads * size * seen(self.rows))


def measure(run: Run) -> None:
    """Compared and timed."""
    real = run.is_real
    for sequences, context in DECODES if real else SMALL_DECODES:
        _measure(run, f"decode, {sequences} sequences of {context}", [(1, context)] * sequences)
    for new, before in PREFILLS if real else SMALL_PREFILLS:
        _measure(run, f"prefill, {new} tokens behind {before}", [(new, before + new)])
    mixed = MIXED if real else SMALL_MIXED
    _measure(run, f"prefill of {mixed[0][0]} tokens beside {len(mixed) - 1} that decode", mixed)


def _measure(run: Run, name: str, rows: Rows) -> None:
    with run.attempt(f"attention: {name}"):
        step = Step.of(run, rows)
        calls = step.calls(step.tiles())
        with poisoned():
            out = calls[0]()
        run.check(f"attention: {name}", _error(step, out), ALLOWED)
        run.add(Measured("attention of one layer", name, step.floor(), run.clock.time(calls)))
    run.forget()


def _error(step: Step, out: Tensor) -> float:
    """Of some tokens, from the first to the last."""
    pages, batch = step.cache.layers[0], step.batch
    rows = torch.linspace(0, len(step.q) - 1, COMPARED).long().unique().to(out.device)
    owners = torch.searchsorted(batch.q_starts, rows, right=True) - 1
    expected = [
        _exact(step.q[row], pages, batch.block_table[owner], int(batch.positions[row]) + 1)
        for row, owner in zip(rows.tolist(), owners.tolist(), strict=True)
    ]
    return difference(out[rows], torch.stack(expected))


def _exact(q: Tensor, pages: LayerCache, blocks: Tensor, end: int) -> Tensor:
    """One token over the keys before `end`, in float64: q [Hq, D] -> [Hq * D]."""
    keys, values = (side[blocks.long()].flatten(0, 1)[:end].double() for side in (pages.keys, pages.values))
    grouped = q.double().view(keys.shape[1], -1, q.shape[1])  # [Hkv, G, D]
    scores = torch.einsum("hgd,lhd->hgl", grouped, keys) * q.shape[1] ** -0.5
    return torch.einsum("hgl,lhd->hgd", scores.softmax(-1), values).flatten()
