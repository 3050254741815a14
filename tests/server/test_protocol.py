"""Types and bounds of every parameter: a bad value is refused by name, null and empty ones are absent."""

from typing import Any

import pytest

from server.parameters import INFORMATIONAL, NOT_SUPPORTED
from tests.server.client import MODEL, Client, each_endpoint
from tests.server.fake import READY, FakeEngineClient, replay


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
    reply = client.generate(endpoint, **{name: value})
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
    reply = client.generate(endpoint, **dict.fromkeys((*names, *more, *INFORMATIONAL)))
    assert reply.status == 200
    params = client.engine.submitted[0].params
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (1.0, 1.0, 0, 0.0)
    assert params.max_tokens == (
        16 if endpoint == "complete" else READY.max_model_len - len(client.engine.submitted[0].prompt)
    )


def test_empty_means_absent() -> None:
    client = Client()
    for empty in ({"stop": ""}, {"stop": []}, {"stop": [""]}, {"stream_options": {}}, {"user": ""}, {"cache_salt": ""}):
        assert client.chat(**empty).status == 200


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
def test_more_choices_than_the_engine_holds(endpoint: str) -> None:
    reply = Client().generate(endpoint, n=17)
    assert (reply.status, reply.error["param"]) == (400, "n")
