"""Describes the use of experts as /v1/experts tells it: with counts, and with what chance alone would give."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from typing_extensions import TypedDict

from octavo.engine.api import ExpertShape
from octavo.server.experts.record import UNNAMED, Snapshot, Tally

DENSE = "The model is dense: every token passes the same weights, so there are no experts to count."
IDENTICAL = (
    "All experts of a layer have equal weights: it makes no difference which of them serve a token, so no pattern here "
    "means anything."
)


class Shape(TypedDict):
    layers: list[int]  # the layers of the decoder that are sparse
    experts: int  # in each of them
    top_k: int  # that serve a token
    identical: bool  # all experts of each layer have equal weights


class LayerUse(TypedDict):
    layer: int
    counts: list[int]  # how many tokens each expert served
    entropy: float | None  # of their shares: 1 where all serve alike, less where some serve more; null: nothing counted
    repeats: int  # tokens whose first expert is also that of the token before
    repeated: float | None  # their share of the tokens; null: nothing was counted


class Use(TypedDict):
    tokens: int
    chance_entropy: float | None  # of a layer whose router takes every expert equally often; null: nothing was counted
    layers: list[LayerUse]


class MinutesUse(Use):
    minutes: int  # the stretch of time that ends now


class TopicUse(Use):
    topic: str | None  # null: requests without a topic


class Chance(TypedDict):
    """Says what a router that takes every expert equally often, at random, would come to."""

    share: float  # of each expert among the counts of a layer
    repeated: float


class ExpertsAnswer(TypedDict):
    """Is the answer of /v1/experts. Of a dense model, all but the object, the model and the note are null or empty."""

    object: Literal["experts"]
    model: str
    experts: Shape | None
    note: str | None  # what everybody should know who reads the figures
    since: int | None  # seconds since 1970: the start of the server, or the last reset
    chance: Chance | None
    use: Use | None  # of all requests
    last_minutes: list[MinutesUse]
    topics: list[TopicUse]


def of_dense(model: str) -> ExpertsAnswer:
    """Returns the answer for a model without experts."""
    return {
        "object": "experts",
        "model": model,
        "experts": None,
        "note": DENSE,
        "since": None,
        "chance": None,
        "use": None,
        "last_minutes": [],
        "topics": [],
    }


def of_sparse(model: str, shape: ExpertShape, snapshot: Snapshot) -> ExpertsAnswer:
    """Returns the answer for a sparse model. The topics with the most tokens come first."""
    topics = sorted(snapshot.topics.items(), key=lambda item: -item[1].tokens)
    return {
        "object": "experts",
        "model": model,
        "experts": {
            "layers": list(shape.layers),
            "experts": shape.experts,
            "top_k": shape.top_k,
            "identical": shape.identical,
        },
        "note": IDENTICAL if shape.identical else None,
        "since": int(snapshot.since),
        "chance": {"share": 1 / shape.experts, "repeated": 1 / shape.experts},
        "use": _use(shape, snapshot.use),
        "last_minutes": [{"minutes": each, **_use(shape, tally)} for each, tally in snapshot.last_minutes.items()],
        "topics": [{"topic": None if topic == UNNAMED else topic, **_use(shape, tally)} for topic, tally in topics],
    }


def _use(shape: ExpertShape, tally: Tally) -> Use:
    layers = zip(shape.layers, tally.counts, tally.repeats.tolist(), strict=True)
    return {
        "tokens": tally.tokens,
        "chance_entropy": chance_entropy(shape, tally.tokens),
        "layers": [
            {
                "layer": layer,
                "counts": counts.tolist(),
                "entropy": entropy(counts),
                "repeats": repeats,
                "repeated": repeats / tally.tokens if tally.tokens else None,
            }
            for layer, counts, repeats in layers
        ],
    }


def chance_entropy(shape: ExpertShape, tokens: int) -> float | None:
    """Returns the entropy to expect of a layer whose router takes k of E experts at random, over its maximum.

    It is below 1, since the counts of few tokens are uneven by chance. None if there is no token, or nothing to choose.
    To second order the expected entropy is log E - sum of var(share) / (2 mean share) = log E - (E - k) / (2 k tokens).
    With k = 1 that is Miller's correction (G. A. Miller, Note on the bias of information estimates, 1955).
    """
    if tokens == 0 or shape.experts < 2:
        return None
    lost = (shape.experts - shape.top_k) / (2 * shape.top_k * tokens)  # nats
    least = np.log(shape.top_k)  # that of one token, and of tokens that all take the same experts
    return float(max(np.log(shape.experts) - lost, least) / np.log(shape.experts))


def entropy(counts: NDArray[np.int64]) -> float | None:
    """Returns Shannon's entropy of the experts' shares over its maximum. None if there is nothing to share.

    `counts` is [E]. The maximum is the logarithm of E, and a layer with one expert has no choice.
    """
    total = int(counts.sum())
    if total == 0 or len(counts) < 2:
        return None
    shares = counts[counts > 0] / total
    return abs(float(-(shares * np.log(shares)).sum() / np.log(len(counts))))  # no -0.0 where one expert serves all
