"""One layer's experts on a GPU: ours in every kind of weights, beside torch's grouped product and any peer."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.clock import Calls
from benchmarks.gpu.compare import difference, poisoned
from benchmarks.gpu.inputs import experts_of
from benchmarks.gpu.products import Load, Products
from benchmarks.gpu.run import Peer, Run
from benchmarks.gpu.table import Measured
from octavo.model.kernels.gpu.combine import combine
from octavo.model.kernels.gpu.decoder import partial_outputs
from octavo.model.weights.kinds import ExpertWeights, Weight
from octavo.model.weights.row_major import Stack

COPIES = 2  # of the weights, used by turns: what one token reads of one alone is more than any L2 holds
PREFILLS = (1024, 4096)  # tokens
PARTS = (1, 8, 64, 256)  # tokens, for which the products are shown one by one
ALLOWED = 0.005  # beside float64 on the same rounded weights; bfloat16 rounds by 0.17% in the mean


def measure(run: Run) -> None:
    """Every kind of weights at every number of tokens, compared and timed."""
    for name in run.kinds:
        layers = [experts_of(run.config, run.kind(name), run.device) for _ in range(COPIES)]
        for tokens in (*run.tokens, *(PREFILLS if run.is_real else ())):
            load = Load.random(run.config, tokens, run.dtype, run.device)
            with run.attempt(f"experts in {name}, T={tokens}"):
                _layer(run, name, load, layers)
            if tokens in PARTS:
                with run.attempt(f"products in {name}, T={tokens}"):
                    _products(run, name, Products.of(run, load, layers))
        del layers
        run.forget()


def ours(run: Run, load: Load, layer: ExpertWeights) -> Callable[[], Tensor]:
    """The layer as GpuDecoder runs it, from the normed rows to the sum with the residual."""
    gate_up, down = Stack.of(layer.gate_up), Stack.of(layer.down)

    def call() -> Tensor:
        partials = partial_outputs(load.x, load.ids, gate_up, down, run.arch)
        return combine(partials, load.weights, load.x, None, run.config.rms_norm_eps)[0]

    return call


def grouped(x: Tensor, ids: Tensor, weights: Tensor, layer: ExpertWeights) -> Tensor:
    """With torch's grouped product, as transformers' fastest experts are computed."""
    gate_up, down = Stack.of(layer.gate_up).quants, Stack.of(layer.down).quants
    order = ids.flatten().argsort(stable=True)
    counts = (ids.flatten()[:, None] == torch.arange(len(gate_up), device=x.device)).sum(0)
    ends = counts.cumsum(0).int()
    gate, up = F.grouped_mm(x[order // ids.shape[1]], gate_up.mT, offs=ends).chunk(2, dim=-1)
    by_expert = F.grouped_mm(F.silu(gate) * up, down.mT, offs=ends)
    chosen = torch.empty_like(by_expert).index_copy_(0, order, by_expert).view(*ids.shape, -1)  # [T, k, H]
    return x + (chosen * weights[..., None]).sum(1).to(x.dtype)


def exact(load: Load, layer: ExpertWeights) -> Tensor:
    """The same in float64, on the weights as they are held."""
    total = load.x.double()
    for expert in load.touched():
        tokens, choices = torch.where(load.ids == expert)
        gate_up, down = (_dense(side[expert]) for side in (layer.gate_up, layer.down))
        gate, up = (load.x[tokens].double() @ gate_up.T).chunk(2, dim=-1)
        outputs = (F.silu(gate) * up) @ down.T
        total.index_add_(0, tokens, outputs * load.weights[tokens, choices, None].double())
    return total


def _layer(run: Run, name: str, load: Load, layers: list[ExpertWeights]) -> None:
    title, expected = f"{name}, T={len(load.x)}", exact(load, layers[0])
    with poisoned():
        actual = ours(run, load, layers[0])()
    run.check(f"experts in {title}", difference(actual, expected), ALLOWED)
    touched, others = load.touched(), {}
    for peer, function in ({"grouped_mm": grouped} | run.peers if name == "bf16" else {}).items():
        with run.attempt(f"{peer} in {title}"):
            calls = _calls(function, load, layers)
            run.check(f"{peer} in {title}", difference(calls[0](), expected), ALLOWED)
            others[peer] = run.clock.time(calls)
    flop = 6.0 * load.ids.numel() * run.config.hidden_size * run.config.intermediate_size
    read = sum(layers[0].gate_up[expert].nbytes + layers[0].down[expert].nbytes for expert in touched)
    run.add(
        Measured(
            section="experts of one layer, for T tokens",
            name=title,
            floor=run.ceilings.floor(read, flop),
            time=run.clock.time([ours(run, load, layer) for layer in layers]),
            others=others,
            note=f"{len(touched)} experts touched",
        )
    )


def _products(run: Run, name: str, products: Products) -> None:
    for op in products.ops:
        run.add(
            Measured(
                section="their two products, one by one",
                name=f"{op} in {name}, T={len(products.load.x)}",
                floor=products.floor(op),
                time=run.clock.time(products.calls(op, products.config(op))),
            )
        )


def _calls(function: Peer, load: Load, layers: list[ExpertWeights]) -> Calls:
    return [lambda layer=layer: function(load.x, load.ids, load.weights, layer) for layer in layers]


def _dense(weight: Weight) -> Tensor:
    return (weight if isinstance(weight, Tensor) else weight.dense()).double()
