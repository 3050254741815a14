"""Compares a layer's small operations and the draw of tokens with references, and times them: section `kernels`.

Their inputs were just written and are still in the L2 cache, in a step as well as here, so the caches are not emptied.
Up to some hundred tokens an operation takes as long as a launch, whatever its floor.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.common.batches import BLOCK
from benchmarks.gpu.experts import RoutedTokens
from benchmarks.gpu.inputs import matrix_of
from benchmarks.gpu.run import Measurement, Run, difference, poisoned
from octavo.model.kernels.gpu.combine import combine, combine_reference
from octavo.model.kernels.gpu.norm import Delta, add_norm, add_norm_reference
from octavo.model.kernels.gpu.rotary import Heads, rotate_and_store, rotate_and_store_reference
from octavo.model.kernels.gpu.router import Routed, route, route_reference
from octavo.model.kernels.gpu.sampling import draw, draw_reference
from octavo.model.kernels.gpu.sort import SortedPairs, sort_pairs, sort_pairs_reference
from octavo.model.kv_cache import KVCache, LayerCache
from octavo.model.layers import RotaryEmbedding
from octavo.model.moe import Router

TOKENS, SMALL_TOKENS = (1, 64, 4096), (2,)
DRAWN = 256  # the most tokens that a step draws
TILE, SPLITS = 16, 4
ALLOWED = 0.005
DRAWS = {  # temperature, top_k, top_p, min_p
    "greedy": (0.0, 0.0, 1.0, 0.0),
    "at temperature 1": (1.0, 0.0, 1.0, 0.0),
    "of top_k 50, top_p 0.9": (0.8, 50.0, 0.9, 0.0),
    "of top_p 0.9": (0.8, 0.0, 0.9, 0.0),
}


@dataclass(frozen=True, slots=True)
class Case:
    """A Case is one operation on one input."""

    name: str
    moved: int  # bytes that are read and written
    call: Callable[[], Any]
    error: Callable[[Any], float]  # the error of what call() returned


def measure(run: Run) -> None:
    """Compares and times every operation at several numbers of tokens."""
    for tokens in TOKENS if run.is_real else SMALL_TOKENS:
        for case in cases(run, tokens):
            with run.attempt(case.name):
                _measure(run, case)


def cases(run: Run, tokens: int) -> Iterator[Case]:
    """Yields the cases for so many tokens; no more are drawn than a step may draw."""
    for make in (_norm, _router, _sort, _rotary, _combine):
        yield make(run, tokens)
    for name, wanted in DRAWS.items() if tokens <= DRAWN else ():
        yield _draw(run, tokens, name, wanted)


def _measure(run: Run, case: Case) -> None:
    with poisoned():
        actual = case.call()
    run.check(case.name, case.error(actual), ALLOWED)
    floor = run.ceilings.floor(case.moved)
    run.add(Measurement("small operations, for T tokens", case.name, floor, run.clock.time([case.call])))


def _norm(run: Run, tokens: int) -> Case:
    x, delta, weight, eps = *_residual(run, tokens), _norm_weight(run), run.config.rms_norm_eps

    def call() -> tuple[Tensor, Tensor]:
        return add_norm(x, Delta(delta), weight, eps)

    def error(actual: tuple[Tensor, Tensor]) -> float:
        return _worst(actual, add_norm_reference(x, Delta(delta), weight, eps))

    return Case(f"residual and norm, T={tokens}", 4 * x.nbytes, call, error)


def _router(run: Run, tokens: int) -> Case:
    config = run.config
    (x, delta), weight = _residual(run, tokens), _norm_weight(run)
    gate = matrix_of((config.num_experts, config.hidden_size), run.dtype, run.device)
    router = Router(gate, config.num_experts_per_tok)

    def call() -> Routed:
        return route(x, Delta(delta), weight, config.rms_norm_eps, router)

    def error(actual: Routed) -> float:
        expected = route_reference(x, Delta(delta), weight, config.rms_norm_eps, router)
        shares = (expected.normed.double() @ gate.double().T).softmax(-1)  # [T, E]
        chosen, best = shares.gather(1, actual.ids.long()), shares.gather(1, expected.ids.long())
        # If two experts have nearly equal shares, either may be chosen: the error is the share that is lost.
        lost = 1 - (chosen.sum() / best.sum()).item()
        weights = difference(actual.weights, chosen / chosen.sum(-1, keepdim=True))
        return max(lost, weights, difference(actual.x, expected.x), difference(actual.normed, expected.normed))

    return Case(f"residual, norm and router, T={tokens}", 4 * x.nbytes + gate.nbytes, call, error)


def _sort(run: Run, tokens: int) -> Case:
    ids, experts = RoutedTokens.random(run.config, tokens, run.dtype, run.device).ids, run.config.num_experts

    def call() -> SortedPairs:
        return sort_pairs(ids, experts, TILE)

    def error(actual: SortedPairs) -> float:
        expected = sort_pairs_reference(ids, experts, TILE)
        parts = ("order", "tile_expert", "tile_start", "tile_end")
        return max((getattr(actual, part) != getattr(expected, part)).double().mean().item() for part in parts)

    return Case(f"sort by expert, T={tokens}", 2 * ids.nbytes, call, error)


def _rotary(run: Run, tokens: int) -> Case:
    config = run.config
    heads = Heads(config.num_attention_heads, config.num_key_value_heads)
    qkv = torch.randn(tokens, (heads.q + 2 * heads.kv) * config.head_dim, device=run.device).to(run.dtype)
    rotation = RotaryEmbedding.create(config, run.device).at(torch.arange(tokens, device=run.device))
    slots = torch.randperm(-(-tokens // BLOCK) * BLOCK, device=run.device)[:tokens]
    pages = _pages(run, tokens)

    def call() -> Tensor:
        return rotate_and_store(qkv, rotation, slots, pages, heads)

    def error(actual: Tensor) -> float:
        others = _pages(run, tokens)
        expected = rotate_and_store_reference(qkv, rotation, slots, others, heads)
        return _worst((actual, pages.keys, pages.values), (expected, others.keys, others.values))

    return Case(f"rotary and cache write, T={tokens}", 2 * qkv.nbytes, call, error)


def _combine(run: Run, tokens: int) -> Case:
    routed, weight = RoutedTokens.random(run.config, tokens, run.dtype, run.device), _norm_weight(run)
    eps = run.config.rms_norm_eps
    partials = torch.randn(SPLITS, routed.ids.numel(), run.config.hidden_size, device=run.device)

    def call() -> tuple[Tensor, Tensor | None]:
        return combine(partials, routed.weights, routed.x, weight, eps)

    def error(actual: tuple[Tensor, Tensor | None]) -> float:
        return _worst(actual, combine_reference(partials, routed.weights, routed.x, weight, eps))

    return Case(f"combine and norm, T={tokens}", partials.nbytes + 3 * routed.x.nbytes, call, error)


def _draw(run: Run, tokens: int, name: str, wanted: tuple[float, ...]) -> Case:
    logits = 4 * torch.randn(tokens, run.config.vocab_size, device=run.device)
    noise = torch.rand(tokens, 1, dtype=torch.float64, device=run.device)
    controls = torch.cat((noise, noise.new_tensor(wanted).expand(tokens, -1)), dim=-1)  # [T, 5]

    def call() -> Tensor:
        return draw(logits, controls)

    def error(actual: Tensor) -> float:
        return (actual != draw_reference(logits, controls)).double().mean().item()

    return Case(f"draw {name}, T={tokens}", logits.nbytes, call, error)


def _residual(run: Run, tokens: int) -> tuple[Tensor, Tensor]:
    """Returns the residual stream and what is added to it, [T, H] each."""
    x, delta = torch.randn(2, tokens, run.config.hidden_size, device=run.device).to(run.dtype).unbind()
    return x, delta


def _norm_weight(run: Run) -> Tensor:
    return (1 + 0.1 * torch.randn(run.config.hidden_size, device=run.device)).to(run.dtype)


def _pages(run: Run, tokens: int) -> LayerCache:
    one_layer = replace(run.config, num_hidden_layers=1)
    return KVCache.allocate(one_layer, -(-tokens // BLOCK), BLOCK, run.dtype, run.device).layers[0]


def _worst(actual: tuple[Tensor | None, ...], expected: tuple[Tensor | None, ...]) -> float:
    sides = zip(actual, expected, strict=True)
    return max(difference(one, other) for one, other in sides if one is not None and other is not None)
