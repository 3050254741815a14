"""States the trainings of an upcycling: one for each expert, one for the dense twin, and one for all routers."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.model.train.corpus import Batch, Domain, DomainRows, Mixture, Rows, batch_of, generator
from octavo.model.train.deltas import Adapted, Delta, seeded
from octavo.model.train.dense import DenseModel
from octavo.model.train.fit import Loss, Parameters, Task
from octavo.model.train.settings import ExpertPlan, Settings, targets
from octavo.model.train.sparse import Routed, SparseModel, balance_loss, domain_loss, z_loss

ROUTER_STD = 0.02  # Sparse upcycling begins so (https://arxiv.org/abs/2212.05055, appendix A).
ROUTERS = "routers"  # the parameter: [L, E, H], for inputs whose root mean square is 1


@dataclass(frozen=True, slots=True)
class Costs:
    """Costs are how long steps were measured to take, in seconds."""

    expert: float
    router: float
    token: float  # of evaluation


@dataclass(frozen=True, slots=True, eq=False)
class Bench:
    """A Bench is what all trainings of one upcycling work on."""

    model: DenseModel
    domains: tuple[Domain, ...]
    experts: tuple[ExpertPlan, ...]
    settings: Settings
    steps: int
    costs: Costs

    def rows_of(self, expert: ExpertPlan) -> Rows:
        return Mixture(tuple(self.rows_of_domain(number) for number in expert.domains))

    def rows_of_domain(self, number: int) -> Rows:
        return DomainRows(self.domains[number], number, self.settings.length, self.settings.seed)

    @property
    def router_rows(self) -> int:
        """Returns the rows of a router's step: as many of each domain, so that balance is asked of all together."""
        count = len(self.domains)
        return count * max(1, round(self.settings.rows / count))


def expert_task(bench: Bench, number: int) -> Task:
    """Returns the training of an expert on its domains."""
    expert, settings = bench.experts[number], bench.settings
    return Task(
        name=f"expert-{number}",
        title=f"expert {expert.name}",
        steps=bench.steps,
        rate=settings.learning_rate,
        start=lambda: seeded(bench.model.config, settings.rank, settings.seed, expert.name),
        loss=_adapted_loss(bench, bench.rows_of(expert)),
        tokens=settings.rows * settings.length,
        seconds=bench.costs.expert,
    )


def twin_task(bench: Bench) -> Task:
    """Returns the training of the dense twin: it sees all rows that the experts see, in turns.

    Its change has as many weights as those of all experts together.
    """
    settings, trained = bench.settings, bench.experts[1:]
    return Task(
        name="twin",
        title="the dense twin",
        steps=bench.steps * len(trained),
        rate=settings.learning_rate,
        start=lambda: seeded(bench.model.config, settings.rank * len(trained), settings.seed, "twin"),
        loss=_adapted_loss(bench, Mixture(tuple(map(bench.rows_of, trained)))),
        tokens=settings.rows * settings.length,
        seconds=bench.costs.expert,
    )


def _adapted_loss(bench: Bench, rows: Rows) -> Loss:
    def loss(delta: Parameters, step: int) -> tuple[Tensor, float]:
        batch = batch_of(rows, step, bench.settings.rows).to(bench.model.device)
        mean = _mean(bench.model.losses(batch, Adapted.of(bench.model, delta)))
        return mean, mean.item()

    return loss


def _mean(losses: Tensor) -> Tensor:
    """Returns the mean loss; 0, with a gradient, where no token of a step counts."""
    return losses.sum() / max(1, losses.numel())


def router_task(bench: Bench, experts: Delta, sizes: Tensor) -> Task:
    """Returns the training of all routers with the finished experts; sizes [L] are the inputs' root mean squares."""
    settings = bench.settings
    shape = (len(sizes), len(bench.experts), bench.model.config.hidden_size)
    sparse = SparseModel.of(bench.model, experts, settings.top_k)
    rows = Mixture(tuple(map(bench.rows_of_domain, range(len(bench.domains)))))
    shares = targets(bench.experts, len(bench.domains)).to(bench.model.device)

    def loss(parameters: Parameters, step: int) -> tuple[Tensor, float]:
        batch = batch_of(rows, step, bench.router_rows).to(bench.model.device)
        seen: list[Routed] = []
        own = _mean(bench.model.losses(batch, sparse.feed_forward(unscaled(parameters[ROUTERS], sizes), seen)))
        return own + _router_losses(settings, seen, _by_token(shares, batch)), own.item()

    return Task(
        name="routers",
        title="the routers",
        steps=bench.steps,
        rate=settings.router_learning_rate,
        start=lambda: {ROUTERS: torch.randn(shape, generator=generator(settings.seed, ROUTERS)) * ROUTER_STD},
        loss=loss,
        tokens=bench.router_rows * settings.length,
        seconds=bench.costs.router,
    )


def _router_losses(settings: Settings, seen: list[Routed], shares: Tensor) -> Tensor:
    """Returns the weighted losses of the routers, summed over the layers, as Switch Transformers do."""
    by = settings.coefficients
    each = [
        by.balance * balance_loss(routed) + by.z * z_loss(routed) + by.domain * domain_loss(routed, shares)
        for routed in seen
    ]
    return torch.stack(each).sum()


def _by_token(shares: Tensor, batch: Batch) -> Tensor:
    """Returns the shares of each token's domain: [B * S, E] of shares [D, E]."""
    return shares[batch.domains].repeat_interleave(batch.tokens.shape[1], dim=0)


def unscaled(routers: Tensor, sizes: Tensor) -> Tensor:
    """Returns the routers [L, E, H] for inputs as they are, whose root mean squares are sizes [L]."""
    return routers / sizes[:, None, None]


def input_sizes(bench: Bench) -> Tensor:
    """Returns the root mean square of what each layer's router sees, [L], over one step's rows."""
    rows = Mixture(tuple(map(bench.rows_of_domain, range(len(bench.domains)))))
    batch = batch_of(rows, 0, bench.router_rows).to(bench.model.device)
    sizes: list[Tensor] = []
    with torch.inference_mode():
        bench.model.states(batch.tokens, _watched(bench.model.own, sizes))
    return torch.stack(sizes).clone()


def _watched(feed_forward: Callable[[int, Tensor], Tensor], sizes: list[Tensor]) -> Callable[[int, Tensor], Tensor]:
    def compute(layer: int, x: Tensor) -> Tensor:
        sizes.append(x.square().mean().sqrt().clamp(min=1e-6))
        return feed_forward(layer, x)

    return compute
