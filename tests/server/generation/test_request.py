"""Each parameter has its type and bounds: a bad value is refused by name, and null and empty ones are absent."""

import json
from dataclasses import replace
from typing import Any

import pytest

from octavo.server.conversation.messages import MAX_MESSAGES, MAX_PARTS
from octavo.server.conversation.request import ChatRequest
from octavo.server.generation.parameters import INFORMATIONAL, NOT_SUPPORTED
from octavo.server.generation.request import MAX_STRINGS, GenerationRequest
from octavo.server.openai.completions_request import CompletionRequest
from tests.server.client import MODEL, Client, each_endpoint
from tests.server.fake import READY, FakeEngineClient, replay


@each_endpoint
@pytest.mark.parametrize(
    ("name", "value"),
    [
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
        ("stop", [str(number) for number in range(129)]),
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
        ("presence_penalty", 2.1),
        ("presence_penalty", -2.1),
        ("presence_penalty", "0"),
        ("frequency_penalty", 2.1),
        ("frequency_penalty", -2.1),
        ("frequency_penalty", False),
        ("repetition_penalty", 0),
        ("repetition_penalty", -1),
        ("repetition_penalty", 101),
        ("logit_bias", {"5": 101}),
        ("logit_bias", {"5": -100.5}),
        ("logit_bias", {"5": "1"}),
        ("logit_bias", {"five": 1}),
        ("logit_bias", {"-1": 1}),
        ("logit_bias", {"259": 1}),
        ("logit_bias", {"9" * 400: 1}),
        ("logit_bias", {str(id): 1 for id in range(1025)}),
        ("logit_bias", [5]),
        ("stop_token_ids", [-1]),
        ("stop_token_ids", [259]),
        ("stop_token_ids", [2**70]),
        ("stop_token_ids", ["5"]),
        ("stop_token_ids", 5),
        ("stop_token_ids", [5] * 129),
        ("include_stop_str_in_output", 1),
        ("min_tokens", -1),
        ("min_tokens", 1.0),
        ("min_tokens", 257),
        ("ignore_eos", "yes"),
        ("truncate_prompt_tokens", 0),
        ("truncate_prompt_tokens", -2),
        ("truncate_prompt_tokens", "5"),
        ("prompt_logprobs", -1),
        ("prompt_logprobs", 21),
        ("prompt_logprobs", True),
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


@each_endpoint
@pytest.mark.parametrize("model", [CompletionRequest, ChatRequest])
def test_null_is_as_good_as_absent_for_every_parameter(endpoint: str, model: type[GenerationRequest]) -> None:
    names = model.model_fields.keys() - {"model", "prompt", "messages", "seed"}
    client = Client()
    silent, null = client.generate(endpoint, seed=1), client.generate(endpoint, seed=1, **dict.fromkeys(names))
    assert silent.status == null.status == 200
    first, second = (replace(request, id="") for request in client.engine.submitted)
    assert first == second
    assert (silent.json()["choices"], silent.json()["usage"]) == (null.json()["choices"], null.json()["usage"])


@each_endpoint
def test_what_a_stream_cannot_tell(endpoint: str) -> None:
    reply = Client().generate(endpoint, stream=True, prompt_logprobs=0)
    assert (reply.status, reply.error["param"]) == (400, "prompt_logprobs")
    reply = Client().generate(endpoint, stream=True, stream_options={"continuous_usage_stats": 1})
    assert (reply.status, reply.error["param"]) == (400, "stream_options.continuous_usage_stats")


def test_empty_means_absent() -> None:
    client = Client()
    for empty in ({"stop": ""}, {"stop": []}, {"stop": [""]}, {"stream_options": {}}, {"user": ""}, {"cache_salt": ""}):
        assert client.chat(**empty).status == 200
    for empty in ({"logit_bias": {}}, {"stop_token_ids": []}):
        assert client.chat(**empty).status == 200


@pytest.mark.parametrize(
    ("parameters", "param"),
    [
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": -1}, "top_logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
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


def test_the_bounds_on_counts() -> None:
    """Escaped quotes are no strings, and a body of one long text may have any number of them."""
    quotes = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": '\\"' * MAX_STRINGS}]})
    assert Client().post("/v1/chat/completions", quotes.encode()).error["code"] == "context_length_exceeded"
    strings = Client().complete(stop=["a"] * MAX_STRINGS)
    assert strings.status == 400 and "strings" in strings.error["message"]
    message: dict[str, Any] = {"role": "user", "content": "a"}
    assert Client().chat(messages=[message] * MAX_MESSAGES).error["code"] == "context_length_exceeded"
    many = Client().chat(messages=[message] * (MAX_MESSAGES + 1))
    assert (many.status, many.error["param"]) == (400, "messages")
    part = {"type": "text", "text": ""}
    assert Client().chat(messages=[message | {"content": [part] * MAX_PARTS}]).status == 200
    assert Client().chat(messages=[message | {"content": [part] * (MAX_PARTS + 1)}]).status == 400


def test_a_prompt_of_any_length_can_be_truncated() -> None:
    """The fake tokenizer has a token for each byte."""
    client = Client()
    reply = client.complete(prompt="ab" * 300_000, truncate_prompt_tokens=3)
    assert reply.status == 200
    assert client.engine.submitted[0].prompt == client.tokenizer.encode("bab", add_special_tokens=False)
