"""Sets the sparse model beside what it must beat: base, dense twin, random routing and the best single expert."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from octavo.model.train.deltas import Adapted, Delta, Rounded, dense
from octavo.model.train.dense import FeedForward
from octavo.model.train.evaluate import (
    SCALES,
    Passed,
    Scores,
    Use,
    best_single,
    random_feed_forward,
    score,
    score_sparse,
)
from octavo.model.train.sparse import SparseModel
from octavo.model.train.statistics import dead, difference, entropy, information
from octavo.model.train.tasks import Bench

SPARSE = "sparse"
OTHERS = {  # what the sparse model is compared with, in the order of the report
    "base": "the base",
    "twin": "the base trained densely on the same tokens",
    "random": "random routing",
    "single": "the best single expert",
}


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """An Outcome is all that was trained."""

    bench: Bench
    stored: Mapping[str, Rounded]  # of experts 1 to X: gate.a [X, L, R, H] and so on
    routers: Tensor  # [L, 1 + X, H]
    twin: Delta | None  # None: there was no dense training
    scales: tuple[float, ...]  # of each trained expert
    validation: tuple[tuple[float, ...], ...]  # each expert's loss at each of SCALES
    curves: Mapping[str, tuple[float, ...]]  # the loss of each step, for each training

    def delta(self, number: int) -> Delta:
        """Returns the change of one expert, from 1 on."""
        return {name: each[number - 1] for name, each in dense(self.stored).items()}


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """A Comparison is what was measured on the test documents, for each domain."""

    scores: Mapping[str, tuple[Scores, ...]]  # by "sparse" and the names of OTHERS
    use: tuple[Use, ...]
    single: int  # the best single expert


def compare(outcome: Outcome, passed: Passed) -> Comparison:
    """Scores the sparse model and the others on all test documents."""
    bench, settings = outcome.bench, outcome.bench.settings
    numbers = range(1, len(bench.experts))
    single = best_single(bench, [outcome.delta(number) for number in numbers], passed)
    sparse = SparseModel.of(bench.model, dense(outcome.stored), settings.top_k)
    feed_forwards: dict[str, FeedForward] = {"base": bench.model.own}
    if outcome.twin is not None:
        feed_forwards["twin"] = Adapted.of(bench.model, outcome.twin)
    feed_forwards["random"] = random_feed_forward(sparse, outcome.routers, settings.seed)
    feed_forwards["single"] = Adapted.of(bench.model, outcome.delta(single)) if single else bench.model.own
    scores = {
        name: tuple(score(bench, domain.test, each, passed) for domain in bench.domains)
        for name, each in feed_forwards.items()
    }
    routed = [score_sparse(bench, domain, sparse, outcome.routers, passed) for domain in bench.domains]
    return Comparison(scores | {SPARSE: tuple(each for each, _ in routed)}, tuple(use for _, use in routed), single)


def findings(outcome: Outcome, comparison: Comparison, name: str) -> dict[str, Any]:
    """Returns the report as JSON. Nothing in it depends on the clock, so a resumed training reports the same."""
    bench = outcome.bench
    return {
        "base": name,
        "steps": bench.steps,
        "seed": bench.settings.seed,
        "tokens": bench.steps * (len(bench.experts) - 1) * bench.settings.rows * bench.settings.length,
        "top_k": bench.settings.top_k,
        "rank": bench.settings.rank,
        "length": bench.settings.length,
        "experts": _experts(outcome),
        "best_single": bench.experts[comparison.single].name,
        "domains": [_domain(outcome, comparison, number) for number in range(len(bench.domains))],
        "overall": _overall(outcome, comparison),
        "layers": _layers(outcome, comparison),
        "curves": {title: list(curve) for title, curve in outcome.curves.items()},
    }


def _experts(outcome: Outcome) -> list[dict[str, Any]]:
    original: dict[str, Any] = {"name": outcome.bench.experts[0].name, "domains": []}
    trained = zip(outcome.bench.experts[1:], outcome.scales, outcome.validation, strict=True)
    return [original] + [
        {
            "name": expert.name,
            "domains": [outcome.bench.domains[number].name for number in expert.domains],
            "scale": scale,
            "validation": dict(zip(map(str, SCALES), losses, strict=True)),
        }
        for expert, scale, losses in trained
    ]


def _domain(outcome: Outcome, comparison: Comparison, number: int) -> dict[str, Any]:
    domain, use = outcome.bench.domains[number], comparison.use[number]
    weight = use.weight.sum(dim=0).numpy()  # [L, E]
    return {
        "name": domain.name,
        "documents": {"train": len(domain.train), "validation": len(domain.validation), "test": len(domain.test)},
        "train_tokens": domain.tokens(),
        "test_tokens": int(comparison.scores[SPARSE][number].counts.sum()),
        "losses": {variant: scores[number].mean for variant, scores in comparison.scores.items()},
        "against": {
            other: _against(outcome, comparison.scores[SPARSE][number : number + 1], scores[number : number + 1])
            for other, scores in comparison.scores.items()
            if other != SPARSE
        },
        "use": _shares(weight.sum(axis=0)),
        "first": _shares(use.first.sum(dim=(0, 1)).numpy()),
        "use_by_layer": [_shares(layer) for layer in weight],
        "entropy": float(entropy(weight).mean()),
    }


def _against(outcome: Outcome, ours: tuple[Scores, ...], theirs: tuple[Scores, ...]) -> dict[str, Any]:
    """Compares two models over the documents of some domains."""
    sums, others = (np.concatenate([each.sums.numpy() for each in scores]) for scores in (ours, theirs))
    counts = np.concatenate([each.counts.numpy() for each in ours]).astype(np.float64)
    found = difference(sums, others, counts, outcome.bench.settings.seed)
    return {
        "difference": found.mean,
        "low": found.low,
        "high": found.high,
        "documents": found.documents,
        "verdict": found.verdict,
    }


def _overall(outcome: Outcome, comparison: Comparison) -> dict[str, Any]:
    weight = np.concatenate([use.weight.numpy() for use in comparison.use]).sum(axis=0)  # [L, E]
    return {
        "losses": {
            variant: float(sum(each.sums.sum() for each in scores) / sum(each.counts.sum() for each in scores))
            for variant, scores in comparison.scores.items()
        },
        "against": {
            other: _against(outcome, comparison.scores[SPARSE], scores)
            for other, scores in comparison.scores.items()
            if other != SPARSE
        },
        "use": _shares(weight.sum(axis=0)),
        "entropy": float(entropy(weight).mean()),
        "dead": int(dead(weight).sum()),
    }


def _layers(outcome: Outcome, comparison: Comparison) -> dict[str, Any]:
    weight = np.concatenate([use.weight.numpy() for use in comparison.use]).sum(axis=0)  # [L, E]
    first = np.concatenate([use.first.numpy() for use in comparison.use])  # [N, L, E]
    labels = np.repeat(np.arange(len(comparison.use)), [len(use.first) for use in comparison.use])
    told = information(first, labels, outcome.bench.settings.seed)
    tokens = np.array([use.first[:, 0].sum().item() for use in comparison.use])  # [D]
    return {
        "entropy": entropy(weight).tolist(),
        "dead": dead(weight).tolist(),
        "information": list(told.by_layer),
        "information_by_chance": list(told.chance),
        "information_by_chance_95": list(told.chance_high),
        "most_information": float(entropy(tokens) * np.log2(max(2, len(tokens)))),
    }


def _shares(values: Any) -> list[float]:
    return (values / max(values.sum(), 1e-12)).tolist()
