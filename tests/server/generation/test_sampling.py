"""Every parameter reaches the sampler, from the checkpoint if the request is silent."""

from typing import Any

import pytest

from octavo.engine.api import Ready, SamplingDefaults
from octavo.server.generation.salt import prefix_salt
from tests.server.client import Client, each_endpoint
from tests.server.fake import READY, FakeEngineClient
from tests.server.vocab import BOS, ids_of


@each_endpoint
@pytest.mark.parametrize(
    ("name", "value", "field", "expected"),
    [
        ("max_tokens", 7, "max_tokens", 7),
        ("temperature", 0, "temperature", 0.0),
        ("temperature", 0.3, "temperature", 0.3),
        ("temperature", 2, "temperature", 2.0),
        ("top_p", 0.5, "top_p", 0.5),
        ("top_k", 5, "top_k", 5),
        ("top_k", 0, "top_k", 0),
        ("top_k", -1, "top_k", 0),
        ("min_p", 0.1, "min_p", 0.1),
        ("seed", 11, "seed", 11),
        ("seed", 0, "seed", 0),
        ("seed", -2, "seed", 2**64 - 2),
        ("seed", -(2**63), "seed", 2**63),
        ("seed", 2**63 - 1, "seed", 2**63 - 1),
        ("presence_penalty", -2, "presence_penalty", -2.0),
        ("frequency_penalty", 1.5, "frequency_penalty", 1.5),
        ("repetition_penalty", 1.2, "repetition_penalty", 1.2),
        ("logit_bias", {"258": -100, "0": 0.5}, "logit_bias", ((258, -100.0), (0, 0.5))),
        ("logit_bias", {"7": 1, "07": 2}, "logit_bias", ((7, 2.0),)),
        ("stop_token_ids", [65, 2, 65], "stop_token_ids", (2, 65)),
        ("ignore_eos", True, "stop_token_ids", ()),
        ("ignore_eos", False, "stop_token_ids", (2,)),
        ("min_tokens", 3, "min_tokens", 3),
    ],
)
def test_what_the_sampler_is_asked(endpoint: str, name: str, value: Any, field: str, expected: Any) -> None:
    client = Client()
    assert client.generate(endpoint, **{name: value}).status == 200
    assert getattr(client.engine.submitted[0].params, field) == expected


def test_the_checkpoint_recommends_where_the_request_is_silent() -> None:
    recommended = SamplingDefaults(temperature=0.2, top_k=40, top_p=0.9, min_p=0.05, repetition_penalty=1.1)
    ready = Ready(256, 8, 8, (), (2,), recommended)
    client = Client(FakeEngineClient(state=ready))
    client.chat()
    client.chat(temperature=0, top_k=0, top_p=1, min_p=0, repetition_penalty=1)
    silent, explicit = (request.params for request in client.engine.submitted)
    assert (silent.temperature, silent.top_k, silent.top_p, silent.min_p) == (0.2, 40, 0.9, 0.05)
    assert (silent.repetition_penalty, explicit.repetition_penalty) == (1.1, 1.0)
    assert (explicit.temperature, explicit.top_k, explicit.top_p, explicit.min_p) == (0.0, 0, 1.0, 0.0)


def test_ignoring_the_end_still_stops_at_the_named_tokens() -> None:
    client = Client()
    client.chat(ignore_eos=True, stop_token_ids=[70])
    assert client.engine.submitted[0].params.stop_token_ids == (70,)


@each_endpoint
def test_min_tokens_up_to_max_tokens(endpoint: str) -> None:
    assert Client().generate(endpoint, min_tokens=5, max_tokens=5).status == 200
    reply = Client().generate(endpoint, min_tokens=6, max_tokens=5)
    assert (reply.status, reply.error["param"]) == (400, "min_tokens")


@pytest.mark.parametrize("seed", [None, -1])
def test_without_a_seed_every_request_draws_its_own(seed: int | None) -> None:
    client = Client()
    for _ in range(3):
        client.chat(n=2, seed=seed)
    seeds = [request.params.seed for request in client.engine.submitted]
    assert seeds[::2] == seeds[1::2] and len(set(seeds)) == 3
    assert all(0 <= seed < 2**64 for seed in seeds)


def test_n_choices_share_prompt_and_seed_and_differ_in_choice() -> None:
    client = Client()
    client.complete(n=3, seed=5, cache_salt="mine")
    requests = client.engine.submitted
    assert [request.params.choice for request in requests] == [0, 1, 2]
    assert {request.prompt for request in requests} == {(BOS, *ids_of("hi"))}
    assert {request.cache_salt for request in requests} == {prefix_salt("", "mine")}
    assert len({request.id for request in requests}) == 3


def test_the_eos_tokens_of_the_checkpoint_end_a_choice() -> None:
    client = Client()
    client.chat()
    assert client.engine.submitted[0].params.stop_token_ids == READY.eos_token_ids


def test_max_completion_tokens_is_the_newer_name_and_wins() -> None:
    client = Client()
    client.chat(max_completion_tokens=5)
    client.chat(max_completion_tokens=5, max_tokens=9)
    client.chat(max_tokens=9)
    assert [request.params.max_tokens for request in client.engine.submitted] == [5, 5, 9]


@pytest.mark.parametrize(
    ("endpoint", "parameters", "wanted"),
    [
        ("complete", {}, None),
        ("complete", {"logprobs": 0}, 0),
        ("complete", {"logprobs": 20}, 20),
        ("chat", {"logprobs": False}, None),
        ("chat", {"logprobs": False, "top_logprobs": 0}, None),
        ("chat", {"logprobs": True}, 0),
        ("chat", {"logprobs": True, "top_logprobs": 20}, 20),
    ],
)
def test_logprobs_that_the_engine_is_asked_for(endpoint: str, parameters: dict[str, Any], wanted: int | None) -> None:
    client = Client()
    client.generate(endpoint, **parameters)
    assert client.engine.submitted[0].params.logprobs == wanted


@each_endpoint
@pytest.mark.parametrize(("keep", "kept"), [(1, 1), (3, 3), (1000, None), (None, None), (-1, None)])
def test_the_end_of_the_prompt_is_kept(endpoint: str, keep: int | None, kept: int | None) -> None:
    client = Client()
    whole = client.generate(endpoint).json()["usage"]["prompt_tokens"]
    reply = client.generate(endpoint, truncate_prompt_tokens=keep, max_tokens=5)
    first, second = (request.prompt for request in client.engine.submitted)
    assert second == first[-(kept or whole) :]
    assert reply.json()["usage"]["prompt_tokens"] == len(second)


@pytest.mark.parametrize(("max_tokens", "kept"), [(None, 240), (6, 250), (0, 256), (255, 1)])
def test_a_prompt_is_cut_to_what_the_context_leaves(max_tokens: int | None, kept: int) -> None:
    client = Client()
    prompt = [65 + position % 50 for position in range(300)]
    assert client.complete(prompt=prompt, truncate_prompt_tokens=-1, max_tokens=max_tokens).status == 200
    assert client.engine.submitted[0].prompt == tuple(prompt[-kept:])


def test_what_is_cut_may_still_be_too_long() -> None:
    reply = Client().complete(prompt=[65] * 300, truncate_prompt_tokens=-1, max_tokens=256)
    assert (reply.status, reply.error["code"]) == (400, "context_length_exceeded")


def test_the_echo_of_a_cut_prompt_is_what_was_kept() -> None:
    reply = Client().complete(prompt="hello", truncate_prompt_tokens=2, echo=True, max_tokens=0)
    assert reply.json()["choices"][0]["text"] == "lo"
