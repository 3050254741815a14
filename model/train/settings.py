"""Holds what a training is asked for, and what follows from it: its experts, and which domains each of them serves."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.model.config import ModelError


@dataclass(frozen=True, slots=True)
class Coefficients:
    """Coefficients say how much each loss of the routers counts beside the language model's own."""

    balance: float = 0.01  # Switch Transformers (https://arxiv.org/abs/2101.03961, section 2.2)
    z: float = 0.001  # ST-MoE (https://arxiv.org/abs/2202.08906, section 3.3)
    domain: float = 0.1  # ours: how strongly a token is led to the expert of its domain


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings are what the result depends on, besides the dense model, the text and the number of steps."""

    experts: int | None = None  # None: as many as domains that are trained on, and the original
    top_k: int = 2
    rank: int = 4
    length: int = 128  # tokens of a row
    rows: int = 4  # of a step
    seed: int = 0
    learning_rate: float = 2e-3  # of the experts
    router_learning_rate: float = 1e-2
    coefficients: Coefficients = Coefficients()
    keep: str | None = None  # the domain that expert 0 serves, as it is
    baseline: bool = True  # whether the base is trained densely, too, to compare with


@dataclass(frozen=True, slots=True)
class ExpertPlan:
    """An ExpertPlan says which domains' text an expert is trained on; the original has none."""

    name: str
    domains: tuple[int, ...]


def experts_for(settings: Settings, names: Sequence[str]) -> tuple[ExpertPlan, ...]:
    """Returns the original, an expert for each domain, then those of mixtures. Raises ModelError.

    The mixtures are of neighbours: of the first and the second domain, of the second and the third, and so on.
    """
    if settings.keep is not None and settings.keep not in names:
        raise ModelError(f"--keep names the domain {settings.keep}, which there is not: use one of {', '.join(names)}.")
    trained = [number for number, name in enumerate(names) if name != settings.keep]
    if not trained:
        raise ModelError("The only domain is kept on the original expert: give another --domain to train one on.")
    count = len(trained) + 1 if settings.experts is None else settings.experts
    if count < len(trained) + 1:
        raise ModelError(
            f"{len(trained)} domains and the original need {len(trained) + 1} experts, and --experts says {count}: "
            "raise it, or give fewer domains."
        )
    if settings.top_k > count:
        raise ModelError(f"--top-k is {settings.top_k}, and there are {count} experts: lower it, or raise --experts.")
    pairs = [(trained[n % len(trained)], trained[(n + 1) % len(trained)]) for n in range(count - 1 - len(trained))]
    return (
        ExpertPlan("original", ()),
        *(ExpertPlan(names[number], (number,)) for number in trained),
        *(ExpertPlan(f"{'+'.join(names[d] for d in pair)}-{n}", pair) for n, pair in enumerate(pairs, start=1)),
    )


def targets(experts: Sequence[ExpertPlan], domains: int) -> Tensor:
    """Returns how a domain's tokens are to be shared out among the experts, [D, E].

    An expert that was trained on two domains gets half as much of each as one that was trained on a single one. A
    domain that no expert was trained on belongs to the original.
    """
    shares = torch.zeros(domains, len(experts))
    for number, expert in enumerate(experts):
        for domain in expert.domains:
            shares[domain, number] += 1 / len(expert.domains)
    shares[shares.sum(dim=1) == 0, 0] = 1.0
    return shares / shares.sum(dim=1, keepdim=True)
