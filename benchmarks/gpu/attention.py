"""Measures one layer's paged attention in decoding, in prefill, and in steps that do both: section `attention`."""

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from benchmarks.common.batches import BLOCK, Lengths, batch_of, keys_seen, random_cache, random_table
from benchmarks.gpu.clock import Calls
from benchmarks.gpu.run import Measurement, Run, difference, poisoned
from octavo.model.batch import ForwardBatch
from octavo.model.kernels.gpu.attention import attend
from octavo.model.kernels.gpu.attention_plan import AttentionTiles, plan
from octavo.model.kv_cache import KVCache, LayerCache

DECODES = ((1, 1024), (1, 32768), (8, 4096), (32, 2048), (64, 1024), (256, 1024))  # sequences, context
PREFILLS = ((2048, 0), (2048, 30720), (8192, 0))  # new tokens, tokens before them
MIXED = [(2048, 2048)] + [(1, 1024)] * 64
SMALL_DECODES, SMALL_PREFILLS, SMALL_MIXED = ((2, 40),), ((8, 16),), [(12, 20), (1, 30)]
CACHED = 1 << 28  # bytes of pages that take turns, several times what an L2 holds
COMPARED = 16  # tokens
ALLOWED = 0.01  # weights and values are multiplied in bfloat16


@dataclass(frozen=True, slots=True)
class AttentionCase:
    """An AttentionCase holds the queries of one batch, and the keys and values of several layers for them."""

    run: Run
    lengths: Lengths
    batch: ForwardBatch
    cache: KVCache
    q: Tensor  # [T, Hq, D]

    @classmethod
    def random(cls, run: Run, lengths: Lengths) -> "AttentionCase":
        config, table = run.config, random_table(lengths)
        batch = batch_of(lengths, table, config.vocab_size, run.device)
        one = KVCache.bytes_per_token(replace(config, num_hidden_layers=1), run.dtype) * table.numel() * BLOCK
        layers = max(1, min(config.num_hidden_layers, CACHED // one)) if run.is_real else 1
        cache = random_cache(replace(config, num_hidden_layers=layers), table.numel(), run.dtype, run.device)
        shape = len(batch.tokens), config.num_attention_heads, config.head_dim
        return cls(run, lengths, batch, cache, torch.randn(shape, device=run.device).to(run.dtype))

    def tiles(self) -> AttentionTiles:
        """Returns the tiles that the table has for this device."""
        return AttentionTiles.of(self.run.config, self.run.dtype, self.run.arch, self.run.processors)

    def calls(self, tiles: AttentionTiles) -> Calls:
        """Returns a call for each layer's pages."""
        planned = plan(self.batch, self.cache, None, tiles)
        return [partial(attend, self.q, pages, planned) for pages in self.cache.layers]

    def floor(self) -> float:
        """Returns the seconds that the bytes (keys, values, queries, outputs) or the two products take at least."""
        layer = replace(self.run.config, num_hidden_layers=1)
        cached = KVCache.bytes_per_token(layer, self.run.dtype) * sum(end for _, end in self.lengths)
        heads, size = self.q.shape[1:]
        return self.run.ceilings.floor(cached + 2 * self.q.nbytes, 4.0 * heads * size * keys_seen(self.lengths))


def measure(run: Run) -> None:
    """Compares and times every case."""
    real = run.is_real
    for sequences, context in DECODES if real else SMALL_DECODES:
        _measure(run, f"decode, {sequences} sequences of {context}", [(1, context)] * sequences)
    for new, before in PREFILLS if real else SMALL_PREFILLS:
        _measure(run, f"prefill, {new} tokens behind {before}", [(new, before + new)])
    mixed = MIXED if real else SMALL_MIXED
    _measure(run, f"prefill of {mixed[0][0]} tokens beside {len(mixed) - 1} that decode", mixed)


def _measure(run: Run, name: str, lengths: Lengths) -> None:
    with run.attempt(f"attention: {name}"):
        case = AttentionCase.random(run, lengths)
        calls = case.calls(case.tiles())
        with poisoned():
            out = calls[0]()
        run.check(f"attention: {name}", _error(case, out), ALLOWED)
        run.add(Measurement("attention of one layer", name, case.floor(), run.clock.time(calls)))
    run.forget()


def _error(case: AttentionCase, out: Tensor) -> float:
    """Compares some tokens, from the first to the last."""
    pages, batch = case.cache.layers[0], case.batch
    tokens = torch.linspace(0, len(case.q) - 1, COMPARED).long().unique().to(out.device)
    owners = torch.searchsorted(batch.q_starts, tokens, right=True) - 1
    expected = [
        _exact(case.q[token], pages, batch.block_table[owner], int(batch.positions[token]) + 1)
        for token, owner in zip(tokens.tolist(), owners.tolist(), strict=True)
    ]
    return difference(out[tokens], torch.stack(expected))


def _exact(q: Tensor, pages: LayerCache, blocks: Tensor, end: int) -> Tensor:
    """Computes one token's attention to the keys before `end`, in float64: q [Hq, D] -> [Hq * D]."""
    keys, values = (side[blocks.long()].flatten(0, 1)[:end].double() for side in (pages.keys, pages.values))
    grouped = q.double().view(keys.shape[1], -1, q.shape[1])  # [Hkv, G, D]
    scores = torch.einsum("hgd,lhd->hgl", grouped, keys) * q.shape[1] ** -0.5
    return torch.einsum("hgl,lhd->hgd", scores.softmax(-1), values).flatten()
