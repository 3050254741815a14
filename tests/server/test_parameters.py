"""Every parameter: its effect on what the engine is asked, its bounds, null, and what is refused or passed over."""

import logging
from typing import Any

import pytest

from engine.api import Ready, SamplingDefaults
from server.parameters import INFORMATIONAL, NOT_SUPPORTED
from tests.server.client import MODEL, Client, Reply
from tests.server.fake import READY, FakeEngineClient, replay
from tests.server.vocab import BOS, ids_of

ENDPOINTS = ("complete", "chat")
each_endpoint = pytest.mark.parametrize("endpoint", ENDPOINTS)


def call(client: Client, endpoint: str, **parameters: Any) -> Reply:
    return client.complete(**parameters) if endpoint == "complete" else client.chat(**parameters)


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
        ("seed", -1, "seed", 2**64 - 1),
        ("seed", 2**63 - 1, "seed", 2**63 - 1),
    ],
)
def test_what_the_sampler_is_asked(endpoint: str, name: str, value: Any, field: str, expected: Any) -> None:
    client = Client()
    assert call(client, endpoint, **{name: value}).status == 200
    assert getattr(client.engine.submitted[0].params, field) == expected


@each_endpoint
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", 0),
        ("max_tokens", -1),
        ("max_tokens", 1.5),
        ("max_tokens", True),
        ("max_tokens", "3"),
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", "1"),
        ("temperature", True),
        ("temperature", []),
        ("top_p", -0.1),
        ("top_p", 1.1),
        ("top_k", -2),
        ("top_k", 1.0),
        ("top_k", 2**31),
        ("min_p", 1.5),
        ("seed", 2**63),
        ("seed", 10**300),
        ("seed", 0.5),
        ("stop", ["a", "b", "c", "d", "e"]),
        ("stop", [1]),
        ("stop", "x" * 1025),
        ("stop", ["x" * 1025]),
        ("stop", {"a": 1}),
        ("n", 0),
        ("n", 129),
        ("n", "2"),
        ("n", True),
        ("logprobs", 21),
        ("logprobs", -1),
        ("stream", "yes"),
        ("stream", 1),
        ("stream_options", {"include_usage": True}),
        ("stream_options", 3),
        ("user", 5),
        ("cache_salt", 5),
        ("model", None),
        ("model", 5),
    ],
)
def test_a_bad_value_is_named(endpoint: str, name: str, value: Any) -> None:
    client = Client()
    reply = call(client, endpoint, **{name: value})
    assert reply.status == 400
    assert (reply.error["type"], reply.error["param"]) == ("invalid_request_error", name)
    assert name in reply.error["message"]
    assert client.engine.submitted == []


@pytest.mark.parametrize("literal", ["1e999", "NaN", "-Infinity", "-1e999"])
@pytest.mark.parametrize("name", ["temperature", "top_p", "min_p"])
def test_numbers_that_json_does_not_have(name: str, literal: str) -> None:
    body = f'{{"model": "{MODEL}", "prompt": "hi", "{name}": {literal}}}'
    reply = Client().post("/v1/completions", body.encode())
    assert (reply.status, reply.error["param"]) == (400, name)


@each_endpoint
def test_null_means_absent(endpoint: str) -> None:
    names = ("max_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "stop", "n", "logprobs", "user")
    more = ("stream", "stream_options", "cache_salt", "max_completion_tokens", "top_logprobs", *NOT_SUPPORTED)
    client = Client(FakeEngineClient(replay((65,))))
    reply = call(client, endpoint, **dict.fromkeys((*names, *more, *INFORMATIONAL)))
    assert reply.status == 200
    params = client.engine.submitted[0].params
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (1.0, 1.0, 0, 0.0)
    assert params.max_tokens == (16 if endpoint == "complete" else READY.max_model_len - len(prompt_of(client)))


def prompt_of(client: Client) -> tuple[int, ...]:
    return client.engine.submitted[0].prompt


def test_the_checkpoint_recommends_where_the_request_is_silent() -> None:
    recommended = SamplingDefaults(temperature=0.2, top_k=40, top_p=0.9, min_p=0.05)
    ready = Ready(256, 1024, 8, 8, (), (2,), recommended)
    client = Client(FakeEngineClient(state=ready))
    client.chat()
    client.chat(temperature=0, top_k=0, top_p=1, min_p=0)
    silent, explicit = (request.params for request in client.engine.submitted)
    assert (silent.temperature, silent.top_k, silent.top_p, silent.min_p) == (0.2, 40, 0.9, 0.05)
    assert (explicit.temperature, explicit.top_k, explicit.top_p, explicit.min_p) == (0.0, 0, 1.0, 0.0)


def test_without_a_seed_every_request_draws_its_own() -> None:
    client = Client()
    for _ in range(3):
        client.chat(n=2)
    seeds = [request.params.seed for request in client.engine.submitted]
    assert seeds[::2] == seeds[1::2] and len(set(seeds)) == 3
    assert all(0 <= seed < 2**64 for seed in seeds)


def test_n_choices_share_prompt_and_seed_and_differ_in_choice() -> None:
    client = Client()
    client.complete(n=3, seed=5, cache_salt="mine")
    requests = client.engine.submitted
    assert [request.params.choice for request in requests] == [0, 1, 2]
    assert {request.prompt for request in requests} == {(BOS, *ids_of("hi"))}
    assert {request.cache_salt for request in requests} == {"mine"}
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
    call(client, endpoint, **parameters)
    assert client.engine.submitted[0].params.logprobs == wanted


@pytest.mark.parametrize(
    ("parameters", "param"),
    [
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": -1}, "top_logprobs"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"logprobs": 3}, "logprobs"),
    ],
)
def test_bad_values_of_chat_alone(parameters: dict[str, Any], param: str) -> None:
    reply = Client().chat(**parameters)
    assert (reply.status, reply.error["param"]) == (400, param)


@each_endpoint
@pytest.mark.parametrize("name", NOT_SUPPORTED)
def test_what_is_not_there_yet_is_refused_by_name(endpoint: str, name: str) -> None:
    for value in ("something", ["something"], {"some": "thing"}, 7.5):
        reply = call(Client(), endpoint, **{name: value})
        assert (reply.status, reply.error["param"]) == (400, name)
        assert name in reply.error["message"]


@each_endpoint
@pytest.mark.parametrize("name", NOT_SUPPORTED)
def test_what_is_not_there_yet_may_be_neutral(endpoint: str, name: str) -> None:
    for value in (None, "", [], {}, *NOT_SUPPORTED[name]):
        assert call(Client(), endpoint, **{name: value}).status == 200, (name, value)


@pytest.mark.parametrize(("name", "value"), [("frequency_penalty", False), ("best_of", True), ("echo", 0)])
def test_neutral_values_are_compared_as_json(name: str, value: Any) -> None:
    assert Client().complete(**{name: value}).error["param"] == name


def test_empty_means_absent() -> None:
    client = Client()
    for empty in ({"stop": ""}, {"stop": []}, {"stop": [""]}, {"stream_options": {}}, {"user": ""}, {"cache_salt": ""}):
        assert client.chat(**empty).status == 200


def test_what_sdks_send_unasked() -> None:
    unasked = {
        "frequency_penalty": 0,
        "presence_penalty": 0.0,
        "tools": [],
        "response_format": {"type": "text"},
        "metadata": {"a": "b"},
        "store": False,
        "user": "u",
        "safety_identifier": "s",
        "prompt_cache_key": "k",
        "service_tier": "auto",
    }
    assert Client().chat(**unasked).status == 200


def test_unknown_parameters_are_logged_once_each(caplog: pytest.LogCaptureFixture) -> None:
    client = Client()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert client.chat(frobnicate=1, **{"evil\nname": 2}).status == 200
    assert [record.getMessage() for record in caplog.records] == [
        "ignoring the unknown parameter 'frobnicate'",
        "ignoring the unknown parameter 'evil\\nname'",
    ]


@each_endpoint
def test_more_choices_than_the_engine_holds(endpoint: str) -> None:
    reply = call(Client(), endpoint, n=17)
    assert (reply.status, reply.error["param"]) == (400, "n")
