"""Says how sure a difference of losses is, and how much experts and domains have to do with each other. Plain numpy."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

RESAMPLES = 2000
SHUFFLES = 200
LEVEL = 0.95
DEAD = 0.1  # An expert with less than this share of its fair share of a layer's weights is called dead.


@dataclass(frozen=True, slots=True)
class Difference:
    """A Difference is of two mean losses over the same documents; below 0, the first is lower."""

    mean: float  # nats a token
    low: float
    high: float
    documents: int

    @property
    def verdict(self) -> str:
        """Returns "lower", "higher" or, where the interval contains 0, "no difference"."""
        if self.low <= 0 <= self.high:
            return "no difference"
        return "lower" if self.high < 0 else "higher"


def difference(first: Floats, second: Floats, counts: Floats, seed: int) -> Difference:
    """Compares two models' losses, summed for each document, [N], whose counts of tokens are [N].

    The interval is the bootstrap's, by percentiles (Efron and Tibshirani, An Introduction to the Bootstrap, 1993,
    chapter 13): whole documents are drawn with replacement, since the tokens of one depend on each other.
    """
    random = np.random.default_rng(seed)
    drawn = random.integers(0, len(counts), (RESAMPLES, len(counts)))
    apart = first - second
    means = apart[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.percentile(means, [50 * (1 - LEVEL), 100 - 50 * (1 - LEVEL)])
    return Difference(float(apart.sum() / counts.sum()), float(low), float(high), len(counts))


def entropy(shares: Floats) -> Floats:
    """Returns the entropy of the last axis, from 0 for a single expert to 1 for perfect balance; [..., E] to [...].

    The shares need not sum to 1.
    """
    total = shares.sum(axis=-1, keepdims=True)
    p = shares / np.where(total == 0, 1, total)
    logs = np.log(np.where(p > 0, p, 1))
    return -(p * logs).sum(axis=-1) / np.log(max(2, shares.shape[-1]))


def dead(shares: Floats) -> npt.NDArray[np.int64]:
    """Returns how many experts of each layer get nearly nothing: [L, E] to [L]."""
    fair = shares.sum(axis=-1, keepdims=True) / shares.shape[-1]
    return (shares < DEAD * fair).sum(axis=-1)


def mutual_information(counts: Floats) -> Floats:
    """Returns what the expert tells of the domain, in bits, for counts [D, L, E] of tokens: [L]."""
    p = counts / counts.sum(axis=(0, 2), keepdims=True)
    alone = p.sum(axis=2, keepdims=True) * p.sum(axis=0, keepdims=True)  # if the two had nothing to do with each other
    ratio = np.where(p > 0, p / np.where(alone > 0, alone, 1), 1)
    return (p * np.log2(ratio)).sum(axis=(0, 2))


@dataclass(frozen=True, slots=True)
class Information:
    """Information is the mutual information of domain and first expert, in bits, beside that of shuffled labels."""

    by_layer: tuple[float, ...]
    chance: tuple[float, ...]  # the mean over shuffles
    chance_high: tuple[float, ...]  # what 95% of the shuffles stay below


def information(counts: Floats, labels: npt.NDArray[np.int64], seed: int) -> Information:
    """Compares documents' counts [N, L, E] and their domains [N] with the same documents under shuffled domains.

    Few documents give information by chance alone. Documents keep their tokens together, because these resemble each
    other whatever the domain is.
    """
    random = np.random.default_rng(seed)
    shuffled = np.stack([_information_of(counts, random.permutation(labels)) for _ in range(SHUFFLES)])
    return Information(
        tuple(_information_of(counts, labels).tolist()),
        tuple(shuffled.mean(axis=0).tolist()),
        tuple(np.percentile(shuffled, 100 * LEVEL, axis=0).tolist()),
    )


def _information_of(counts: Floats, labels: npt.NDArray[np.int64]) -> Floats:
    return mutual_information(np.stack([counts[labels == domain].sum(axis=0) for domain in np.unique(labels)]))
