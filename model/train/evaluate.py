"""Measures losses of documents, and which experts serve them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.model.train.corpus import Document, Domain, generator, padded
from octavo.model.train.deltas import Adapted, Delta, dense, rounded, scaled
from octavo.model.train.dense import FeedForward
from octavo.model.train.sparse import Routed, SparseModel, at_random
from octavo.model.train.tasks import Bench

SCALES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of a trained change, of which validation chooses one
AT_ONCE = 8  # documents

Passed = Callable[[int, float], None]  # is called with documents that are done, and the seconds that were planned


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """Scores are the losses of the documents of one domain."""

    sums: Tensor  # [N] float64, nats
    counts: Tensor  # [N] int64, tokens

    @property
    def mean(self) -> float:
        """Returns the loss of a token, in nats."""
        return (self.sums.sum() / self.counts.sum()).item()


def score(bench: Bench, documents: Sequence[Document], feed_forward: FeedForward, passed: Passed) -> Scores:
    """Returns the loss of each document's first tokens, as many as a row has."""
    sums, counts = [], []
    for first in range(0, len(documents), AT_ONCE):
        some = documents[first : first + AT_ONCE]
        batch = padded(some, 0, bench.settings.length).to(bench.model.device)
        with torch.inference_mode():
            losses = bench.model.losses(batch, feed_forward).double().cpu()
        count = batch.counted.sum(dim=1).cpu()  # [B]
        sums.append(torch.stack([part.sum() for part in losses.split(count.tolist())]))
        counts.append(count)
        passed(len(some), len(some) * bench.settings.length * bench.costs.token)
    return Scores(torch.cat(sums), torch.cat(counts))


def best_scale(bench: Bench, number: int, delta: Delta, passed: Passed) -> tuple[float, list[float]]:
    """Returns the scale of an expert's change with the lowest validation loss on its domains, and all losses.

    The changes are tried as they will be stored.
    """
    documents = [each for domain in bench.experts[number].domains for each in bench.domains[domain].validation]
    losses = []
    for scale in SCALES:
        adapted = Adapted.of(bench.model, dense(rounded(scaled(delta, scale))))
        losses.append(score(bench, documents, adapted, passed).mean)
    return SCALES[losses.index(min(losses))], losses


def best_single(bench: Bench, experts: Sequence[Delta], passed: Passed) -> int:
    """Returns the expert, 0 being the original, whose validation loss is lowest on average over all domains."""
    feed_forwards: list[FeedForward] = [bench.model.own, *(Adapted.of(bench.model, delta) for delta in experts)]
    means = [
        sum(score(bench, domain.validation, each, passed).mean for domain in bench.domains) for each in feed_forwards
    ]
    return means.index(min(means))


@dataclass(frozen=True, slots=True, eq=False)
class Use:
    """Use says which experts served the counted tokens of each document of one domain."""

    first: Tensor  # [N, L, E] float64: tokens whose largest weight was this expert's
    weight: Tensor  # [N, L, E] float64: the sum of its weights


def score_sparse(
    bench: Bench, domain: Domain, sparse: SparseModel, routers: Tensor, passed: Passed
) -> tuple[Scores, Use]:
    """Returns the losses of a domain's test documents, and who served them."""
    scores, first, weight = [], [], []
    for start in range(0, len(domain.test), AT_ONCE):
        some, seen = domain.test[start : start + AT_ONCE], list[Routed]()
        scores.append(score(bench, some, sparse.feed_forward(routers, seen), passed))
        counted = padded(some, 0, bench.settings.length).counted  # [B, S]
        first.append(torch.stack([_shares(routed.ids[:, :1], None, counted, sparse) for routed in seen], dim=1))
        weight.append(torch.stack([_shares(routed.ids, routed.weights, counted, sparse) for routed in seen], dim=1))
    joined = Scores(torch.cat([each.sums for each in scores]), torch.cat([each.counts for each in scores]))
    return joined, Use(torch.cat(first), torch.cat(weight))


def _shares(ids: Tensor, weights: Tensor | None, counted: Tensor, sparse: SparseModel) -> Tensor:
    """Sums each expert's weights, or ones, over the tokens that count, counted [B, S]: [B, E] for ids [B * S, k]."""
    values = torch.ones(ids.shape) if weights is None else weights.cpu()
    values = values.double().view(*counted.shape, -1) * counted[:, :, None]  # [B, S, k]
    places = ids.cpu().view(values.shape).flatten(1)
    return torch.zeros(len(counted), sparse.count, dtype=torch.float64).scatter_add_(1, places, values.flatten(1))


def random_feed_forward(sparse: SparseModel, routers: Tensor, seed: int) -> FeedForward:
    """Returns the mixture with k experts of equal weight, chosen at random for each token and layer."""
    return sparse.feed_forward(routers, [], at_random(generator(seed, "random routing")))
