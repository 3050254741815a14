"""Parameters that this server does not have are refused by name, unless they ask for nothing."""

import logging
from typing import Any

import pytest

from octavo.server.generation.parameters import MAX_UNKNOWN, NOT_SUPPORTED
from tests.server.client import Client, each_endpoint


@each_endpoint
@pytest.mark.parametrize("name", NOT_SUPPORTED)
def test_what_is_not_there_yet_is_refused_by_name(endpoint: str, name: str) -> None:
    client = Client()
    for value in ("something", {"some": "thing"}, 7.5):
        reply = client.generate(endpoint, **{name: value})
        assert (reply.status, reply.error["param"]) == (400, name)
        assert name in reply.error["message"]


@each_endpoint
@pytest.mark.parametrize("name", NOT_SUPPORTED)
def test_what_is_not_there_yet_may_be_neutral(endpoint: str, name: str) -> None:
    client = Client()
    for value in ("", [], {}, *NOT_SUPPORTED[name]):
        assert client.generate(endpoint, **{name: value}).status == 200, (name, value)


@pytest.mark.parametrize(("name", "value"), [("store", 0), ("priority", False), ("length_penalty", True)])
def test_neutral_values_are_compared_as_json(name: str, value: Any) -> None:
    assert Client().complete(**{name: value}).error["param"] == name


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


@each_endpoint
@pytest.mark.parametrize("effort", ["none", "minimal", "low", "medium", "high", "xhigh", "max"])
def test_reasoning_effort_changes_nothing(endpoint: str, effort: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert Client().generate(endpoint, reasoning_effort=effort).status == 200
        assert Client().generate(endpoint, thinking={"type": "enabled"}).status == 200
    assert caplog.records == []


def test_what_frontends_send() -> None:
    """These are the fields of a frontend that renders its own prompts, for a server like vLLM."""
    sliders = {"temperature": 2.0, "top_k": -1, "top_p": 1, "min_p": 0, "typical_p": 1, "top_a": 0, "tfs": 1}
    stops = ["\nUser:", "</s>", "<|im_end|>", "\n***", "\n", *(f"\nGuest {number}:" for number in range(40))]
    sent = {
        **sliders,
        "prompt": "<s>User: hi\nBot:",
        "max_new_tokens": 24,
        "max_tokens": 24,
        "min_tokens": 0,
        "frequency_penalty": 0,
        "presence_penalty": 0,
        "repetition_penalty": 1.1,
        "seed": -1,
        "n": 1,
        "stop": stops,
        "stopping_strings": stops,
        "truncation_length": 8192,
        "ban_eos_token": False,
        "ignore_eos": False,
        "skip_special_tokens": True,
        "spaces_between_special_tokens": True,
        "add_bos_token": True,
        "custom_token_bans": "",
        "logit_bias": {},
        "logprobs": 10,
    }
    assert Client().complete(**sent).status == 200
    chat = {key: value for key, value in sent.items() if key not in ("prompt", "logprobs")}
    assert Client().chat(**chat, logprobs=True, top_logprobs=10).status == 200


def test_unknown_parameters_are_logged_once_each(caplog: pytest.LogCaptureFixture) -> None:
    client = Client()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert client.chat(frobnicate=1, **{"evil\nname": 2}).status == 200
    assert [record.getMessage() for record in caplog.records] == [
        "ignoring the unknown parameter 'frobnicate'",
        "ignoring the unknown parameter 'evil\\nname'",
    ]


def test_more_unknown_fields_than_any_client_sends() -> None:
    fields = {f"x{number}": 1 for number in range(MAX_UNKNOWN)}
    assert Client().complete(**fields).status == 200
    assert Client().complete(**fields, another=1).status == 400
