"""Compares requests that control their experts with transformers, whose routers get other logits."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from octavo.engine.api import ExpertControl, FinishReason, Request, SamplingParams
from octavo.model.config import ModelConfig
from octavo.model.decoder import Decoder
from octavo.model.kernels.choice import select_backend
from octavo.model.kernels.cpu.library import library
from octavo.model.loading.checkpoint import load_model
from octavo.model.ops.seams import TORCH
from octavo.model.weights.kinds import INT8
from octavo.model.weights.precision import Precision
from tests.engine.fake_gpu import capturable
from tests.engine.fakes import Collector, engine, request, run
from tests.engine.serving import VOCAB, Served, serve
from tests.engine.test_routes import EXPERTS, LAYERS, TOP_K, Choices
from tests.tiny import write_tiny_checkpoint

ROUNDING = 1e-4
PROMPT = tuple(torch.randint(3, VOCAB, (19,), generator=torch.Generator().manual_seed(2)).tolist())
CONTROLS = {
    "one expert masked": ExpertControl(masked=((1, 3),)),
    "as many as may be": ExpertControl(masked=tuple((2, expert) for expert in range(EXPERTS - TOP_K))),
    "biases": ExpertControl(biases=((0, 2, 3.0), (0, 4, -2.5), (2, 1, 0.25))),
    "masked and biased": ExpertControl(masked=((0, 1), (2, 5)), biases=((0, 1, 9.0), (1, 0, 1.0))),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = {"num_local_experts": EXPERTS, "num_hidden_layers": LAYERS}
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"), seed=3, sharp=4.0, **shape)


def load(checkpoint: Path, precision: Precision) -> Decoder:
    config = ModelConfig.from_pretrained(checkpoint)
    return load_model(checkpoint, config, select_backend(config, torch.device("cpu")), precision)


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Decoder:
    return load(checkpoint, Precision.plain(torch.float32))


@pytest.fixture(scope="module")
def oracle(checkpoint: Path) -> Any:
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)


def addend(control: ExpertControl, layer: int) -> Tensor:
    """Returns what a control adds to the logits [E] of a layer's router."""
    found = torch.zeros(EXPERTS)
    for at, expert, number in control.biases:
        found[expert] += number * (at == layer)
    for at, expert in control.masked:
        found[expert] -= torch.inf if at == layer else 0.0
    return found


@contextmanager
def controlled(oracle: Any, control: ExpertControl) -> Iterator[Any]:
    """Lets the routers of the oracle choose by other logits."""
    gates = [layer.mlp.gate for layer in oracle.model.layers]

    def changed(layer: int) -> Any:
        def forward(hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            logits = hidden.flatten(0, -2) @ gates[layer].weight.T + addend(control, layer)
            best = logits.topk(TOP_K)
            return logits, best.values.softmax(-1), best.indices

        return forward

    for layer, gate in enumerate(gates):
        gate.forward = changed(layer)
    try:
        yield oracle
    finally:
        for gate in gates:
            del gate.forward


def asked(name: str, control: ExpertControl | None, prompt: tuple[int, ...] = PROMPT) -> Request:
    params = SamplingParams(max_tokens=8, temperature=0.0, experts=control, routes_from=0)
    return Request(name, prompt, params)


def check(served: Served, name: str, oracle: Any, control: ExpertControl | None, prompt: tuple[int, ...]) -> Choices:
    """Asserts that a request's logits and experts are those of the controlled oracle; returns the experts."""
    with controlled(oracle, control or ExpertControl()) as changed, torch.inference_mode():
        text = [*prompt, *served.tokens[name]]
        logits = changed(torch.tensor([text])).logits[0]
        wanted = Choices.of(changed, text)
    for (owner, position), ours in served.logits.items():
        assert owner != name or (ours[:VOCAB] - logits[position]).abs().max() < ROUNDING
    told = Choices.told(served.routes[name])
    assert (told.ids == wanted.ids[:-1]).all()
    return told


@pytest.mark.oracle
@pytest.mark.parametrize("graphed", [False, True], ids=["launched", "graphed"])
@pytest.mark.parametrize("name", CONTROLS)
def test_a_controlled_answer_is_that_of_other_logits(model: Decoder, oracle: Any, name: str, graphed: bool) -> None:
    """Others in the batch do not notice, before, beside and behind it."""
    control, others = CONTROLS[name], {"before": PROMPT[:7], "behind": PROMPT[::-1]}
    requests = [asked("before", None, others["before"]), asked("it", control), asked("behind", None, others["behind"])]
    served = serve(capturable(model) if graphed else model, [requests], max_num_batched_tokens=16)
    told = check(served, "it", oracle, control, PROMPT)
    for layer, expert in control.masked:
        assert not (told.ids[:, layer] == expert).any()
    for other, prompt in others.items():
        check(served, other, oracle, None, prompt)


@pytest.mark.oracle
def test_a_control_shares_cached_prefixes_with_none_but_its_like(model: Decoder, oracle: Any) -> None:
    one, other = CONTROLS["one expert masked"], CONTROLS["biases"]
    rounds = {"plain": None, "one": one, "other": other, "one again": one, "plain again": None}
    served = serve(model, [[asked(name, control)] for name, control in rounds.items()])
    cached = {name: output.cached_tokens for name, output in served.ended.items()}
    assert cached == {"plain": 0, "one": 0, "other": 0, "one again": 16, "plain again": 16}
    for name, control in rounds.items():
        check(served, name, oracle, control, PROMPT)


@pytest.mark.skipif(library() is None, reason="the C kernels were not built")
@pytest.mark.parametrize("name", CONTROLS)
def test_on_the_kernels_of_a_cpu_it_is_what_plain_layers_compute(checkpoint: Path, name: str) -> None:
    fast = load(checkpoint, Precision(torch.float32, INT8, INT8))
    slow = replace(fast, ops=TORCH, fused=None)
    control = CONTROLS[name]
    ours, theirs = (
        Choices.told(serve(each, [[asked("it", control)]]).routes["it"]).ids[: len(PROMPT)] for each in (fast, slow)
    )
    # The kernels round activations, which may change a close choice; another control would change a third of them.
    assert (ours == theirs).mean() > 0.9
    for layer, expert in control.masked:
        assert not (ours[:, layer] == expert).any()


REFUSED = {
    "Layer 1 has no experts to choose from: take one of 0.": ExpertControl(masked=((1, 0),)),
    "There is no expert 1000: a layer has the experts 0 to 999.": ExpertControl(biases=((0, 1000, 1.0),)),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_no_router_has_is_refused(reason: str) -> None:
    collector = Collector()
    collector.take(engine().add(request("a", [1, 2], experts=REFUSED[reason])))
    assert (collector.reason("a"), collector.ended["a"].error) == (FinishReason.ERROR, reason)


@pytest.mark.parametrize("wish", [{"routes_from": 0}, {"experts": ExpertControl()}])
def test_a_dense_model_has_no_lens(wish: dict[str, Any]) -> None:
    collector, core = Collector(), engine(experts=None)
    collector.take(core.add(request("a", [1, 2], **wish)))
    assert "dense" in str(collector.ended["a"].error)
    collector.take(core.add(request("b", [1, 2])))
    run(core, collector)
    assert collector.reason("b") is FinishReason.LENGTH


def test_no_position_lies_before_the_first() -> None:
    output = engine().add(request("a", [1, 2], routes_from=-1))
    assert output is not None and "at least 0" in str(output.error)
