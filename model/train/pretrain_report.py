"""Says what came of a sparse decoder and its dense twin that were trained from nothing on equal tokens."""

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

from octavo.model.train.plots import curves, shares, smoothed
from octavo.model.train.report import document
from octavo.model.train.scratch import Sizes
from octavo.model.train.statistics import Difference, Floats, dead, difference, entropy


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """Trained is what was measured of one decoder."""

    sums: Floats  # [N] nats of each test document
    counts: Floats  # [N] tokens
    use: Floats  # [L, E] choices of each expert
    curve: tuple[float, ...]  # the loss of each training step
    parameters: int


def compared(sizes: Sizes, steps: int, trained: Mapping[str, Trained], seed: int) -> dict[str, Any]:
    """Returns the report as JSON, of what was trained under the names "sparse" and "dense"."""
    sparse, dense = trained["sparse"], trained["dense"]
    found = difference(sparse.sums, dense.sums, sparse.counts, seed)
    return {
        "steps": steps,
        "seed": seed,
        "experts": sizes.experts,
        "top_k": sizes.top_k,
        "parameters": {name: each.parameters for name, each in trained.items()},
        "active_parameters": sizes.config(sparse=True).num_active_parameters(),
        "losses": {name: float(each.sums.sum() / each.counts.sum()) for name, each in trained.items()},
        "difference": found.mean,
        "low": found.low,
        "high": found.high,
        "documents": found.documents,
        "verdict": found.verdict,
        "use": sparse.use.tolist(),
        "entropy": entropy(sparse.use).tolist(),
        "dead": dead(sparse.use).tolist(),
        "curves": {name: list(each.curve) for name, each in trained.items()},
    }


def sentence(found: Mapping[str, Any]) -> str:
    """Says whether the sparse model is better than its twin."""
    apart = Difference(found["difference"], found["low"], found["high"], found["documents"])
    where = f"95% interval {apart.low:+.4f} to {apart.high:+.4f}, {apart.documents} documents"
    if apart.verdict == "no difference":
        return f"On held-out text there is no difference between the two: {apart.mean:+.4f} nats a token ({where})."
    return (
        f"On held-out text the sparse model's loss is {apart.verdict} than that of its dense twin: by "
        f"{abs(apart.mean):.4f} nats a token ({where})."
    )


def page(found: Mapping[str, Any]) -> str:
    """Returns the whole page of a report."""
    names = [str(number) for number in range(found["experts"])]
    rows = {f"layer {n}": [each / max(1, sum(layer)) for each in layer] for n, layer in enumerate(found["use"])}
    sizes = found["parameters"]
    body = (
        f"<p>{escape(sentence(found))}"
        f"<p>Both pass each token through {found['active_parameters'] / 1e6:.1f} million weights, or as good as; the "
        f"sparse model has {sizes['sparse'] / 1e6:.1f} million, the dense twin {sizes['dense'] / 1e6:.1f} million. "
        f"Both saw the same {found['steps']} steps of text."
        + curves(
            {name: smoothed(curve) for name, curve in found["curves"].items()},
            "first step to last",
            "Loss of the training text, in nats a token, averaged over neighbouring steps.",
        )
        + shares(rows, names, f"Share of choices of each expert in percent; a fair share is {100 / len(names):.1f}.")
        + f"<p>Dead experts, with less than a tenth of a fair share: {sum(found['dead'])} of "
        f"{len(names) * len(found['dead'])} over all layers."
    )
    return document(f"A sparse model of {found['experts']} experts beside its dense twin", body)
