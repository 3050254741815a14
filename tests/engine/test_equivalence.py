"""Tests that a text's numbers do not depend on how it is cut, batched, preempted and shared.

A real but tiny model computes in float32. Every logit that the engine sampled from is compared with one forward pass
over the finished text, by itself. This proves something only if rounding cannot have changed a choice.
So the margin of every choice is asserted, too: of the experts of each token, of the most likely token, and of the noise
from the borders of its token.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from octavo.engine.api import Request, SamplingParams
from octavo.engine.compute.noise import uniforms
from octavo.model.config import ModelConfig
from octavo.model.decoder import Decoder
from octavo.model.kernels.choice import select_backend
from octavo.model.loading.checkpoint import load_model
from octavo.model.weights.precision import Precision
from tests.engine.compute.obvious_edits import obvious_edits
from tests.engine.serving import BLOCK_SIZE, VOCAB, Served, serve
from tests.model.pages import Pages
from tests.tiny import LLAMA3_ROPE, write_tiny_checkpoint

ROUNDING = 1e-4  # how far logits may differ
SCORED = (3, 5, 8)  # the indices of requests that ask for their prompt's log-probabilities
EXPERT_MARGIN, TOKEN_MARGIN, NOISE_MARGIN = 1e-4, 1e-3, 1e-6


MODELS = {
    "full attention": {},
    "sliding window": {"sliding_window": 9},
    "dense": {"model_type": "llama", "rope_scaling": LLAMA3_ROPE},
}


@pytest.fixture(scope="module", params=MODELS.values(), ids=MODELS.keys())
def model(request, tmp_path_factory) -> Decoder:
    directory: Path = tmp_path_factory.mktemp("tiny")
    write_tiny_checkpoint(directory, seed=3, sharp=4.0, **request.param)
    config = ModelConfig.from_pretrained(directory)
    backend = select_backend(config, torch.device("cpu"))
    return load_model(directory, config, backend, Precision.plain(torch.float32))


def prompts() -> dict[str, tuple[int, ...]]:
    """Returns ten texts. Some share a beginning, two are the same, and lengths lie at and beside block boundaries."""
    generator = torch.Generator().manual_seed(1)
    shared = torch.randint(3, VOCAB, (16,), generator=generator).tolist()
    texts = {}
    for index, length in enumerate((1, 3, 4, 5, 8, 31)):
        texts[f"own {index}"] = torch.randint(3, VOCAB, (length,), generator=generator).tolist()
    for index, length in enumerate((1, 4, 9)):
        texts[f"shared {index}"] = shared + torch.randint(3, VOCAB, (length,), generator=generator).tolist()
    texts["shared again"] = texts["shared 2"]
    return {name: tuple(text) for name, text in texts.items()}


def requests(prefix: str = "") -> list[Request]:
    """Returns the requests. Every other one is greedy, all ask for log-probabilities, some for penalties or a bias."""
    found = []
    for index, (name, prompt) in enumerate(prompts().items()):
        params = SamplingParams(
            max_tokens=12,
            temperature=0.8 * (index % 2),
            seed=index,
            choice=index % 3,
            logprobs=index % 4,
            repetition_penalty=1.2 if index % 3 == 1 else 1.0,
            presence_penalty=0.5 * (index % 3 == 2),
            frequency_penalty=0.25 * (index % 4),
            logit_bias=((7 * index, 2.0),) * (index % 5 == 3),
            stop_token_ids=tuple(range(0, VOCAB, 2)) * (index == 6),
            min_tokens=12,
            prompt_logprobs=2 if index in SCORED else None,
        )
        found.append(Request(prefix + name, prompt, params))
    return found


WAYS = {
    "alone": {"max_num_seqs": 1, "enable_prefix_caching": False},
    "batched": {"enable_prefix_caching": False},
    "chunked": {"max_num_batched_tokens": 7, "enable_prefix_caching": False},
    "preempted": {"num_blocks": 13, "enable_prefix_caching": False},
    "shared": {},
    "everything at once": {"num_blocks": 13, "max_num_batched_tokens": 9},
}


@pytest.fixture(scope="module")
def alone(model) -> Served:
    return serve(model, [requests()], **WAYS["alone"])


def texts(served: Served) -> Iterator[tuple[Request, list[int]]]:
    for request in requests():
        yield request, [*request.prompt, *served.tokens[request.id]]


@pytest.fixture(scope="module")
def expected(model, alone) -> dict[str, Tensor]:
    """Returns the logits [T, V] of each finished text, from one pass by itself.

    Asserts that no choice of experts was close.
    """
    margins: list[float] = []
    chosen = [layer.moe.router for layer in model.layers if layer.moe.router is not None]
    routers = {id(router.weight): router.top_k for router in chosen}

    def linear(x: Tensor, weight: Tensor) -> Tensor:
        out = model.ops.linear(x, weight)
        if id(weight) in routers:
            ranked = out.sort(-1, descending=True).values
            margins.append((ranked[:, routers[id(weight)] - 1] - ranked[:, routers[id(weight)]]).min().item())
        return out

    watched = replace(model, ops=replace(model.ops, linear=linear))
    found = {
        request.id: Pages(watched, 1, len(text), BLOCK_SIZE).prompt(text)[:, :VOCAB] for request, text in texts(alone)
    }
    assert len(margins) == len(found) * len(routers)
    assert min(margins, default=1.0) > EXPERT_MARGIN
    return found


def test_no_choice_was_a_close_call(alone, expected):
    for request, text in texts(alone):
        params, start = request.params, len(request.prompt)
        for output, token in enumerate(text[start:]):
            logits = expected[request.id][start + output - 1].double()
            logits = torch.tensor(obvious_edits(logits.tolist(), params, text[: start + output], output)).double()
            if params.temperature == 0:
                best, second = logits.topk(2).values
                assert best - second > TOKEN_MARGIN
                assert token == logits.argmax()
            else:
                (noise,) = uniforms([params.seed], [params.choice], [output])
                borders = (logits / params.temperature).softmax(-1).cumsum(-1)
                assert (borders - noise).abs().min() > NOISE_MARGIN
                assert token == torch.searchsorted(borders, torch.tensor([noise]), right=True)


@pytest.mark.parametrize("overlaps", [False, True], ids=["plain", "overlapped"])
@pytest.mark.parametrize("way", WAYS)
def test_tokens_and_logits_do_not_depend_on_the_way(model, alone, expected, way, overlaps):
    served = serve(model, [requests()], overlaps=overlaps, **WAYS[way])
    assert served.tokens == alone.tokens
    assert (served.preemptions > 0) == ("num_blocks" in WAYS[way])
    assert served.logits.keys() == alone.logits.keys()
    for (name, position), logits in served.logits.items():
        assert (logits - expected[name][position]).abs().max() < ROUNDING


def test_a_cached_prefix_is_as_good_as_a_cold_one(model, alone, expected):
    served = serve(model, [requests(), requests("again ")])
    for request in requests():
        again = served.ended["again " + request.id]
        reusable = 0 if request.params.prompt_logprobs is not None else (len(request.prompt) - 1) // BLOCK_SIZE
        assert again.cached_tokens == reusable * BLOCK_SIZE
        assert served.tokens["again " + request.id] == alone.tokens[request.id]
    for (name, position), logits in served.logits.items():
        assert (logits - expected[name.removeprefix("again ")][position]).abs().max() < ROUNDING


def test_logprobs_are_those_of_the_finished_text(model, expected):
    served = serve(model, [requests()], **WAYS["everything at once"])
    for request, text in texts(served):
        start = len(request.prompt)
        scores = expected[request.id].log_softmax(-1)[start - 1 : -1]
        rescored = scores.gather(-1, torch.tensor(text[start:])[:, None]).squeeze(-1)
        assert served.logprobs[request.id] == pytest.approx(rescored.tolist(), abs=1e-3)


@pytest.mark.parametrize("way", WAYS)
def test_the_logprobs_of_a_prompt_are_those_of_its_text(model, expected, way, monkeypatch):
    monkeypatch.setattr("octavo.engine.compute.runner.SCORED_AT_ONCE", 3)
    served = serve(model, [requests()], **WAYS[way])
    for request in requests():
        told = served.prompt_logprobs[request.id]
        if request.params.prompt_logprobs is None:
            assert told == ()
            continue
        ids = torch.tensor(request.prompt[1:])
        scores = expected[request.id].log_softmax(-1)[: len(ids)]
        wanted = scores.gather(-1, ids[:, None])
        assert [each.logprob for each in told] == pytest.approx(wanted.squeeze(-1).tolist(), abs=1e-3)
        ranks = torch.tensor([each.rank for each in told])
        # Rounding may swap tokens whose log-probabilities are this close.
        assert (((scores > wanted + 1e-3).sum(-1) < ranks) & (ranks <= (scores > wanted - 1e-3).sum(-1))).all()
        assert [[id for id, _ in each.top] for each in told] == scores.topk(2).indices.tolist()
