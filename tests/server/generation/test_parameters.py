"""Parameters that this server does not have are refused by name, unless they ask for nothing."""

import logging
from typing import Any

import pytest

from octavo.server.generation.parameters import NOT_SUPPORTED
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


def test_unknown_parameters_are_logged_once_each(caplog: pytest.LogCaptureFixture) -> None:
    client = Client()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert client.chat(frobnicate=1, **{"evil\nname": 2}).status == 200
    assert [record.getMessage() for record in caplog.records] == [
        "ignoring the unknown parameter 'frobnicate'",
        "ignoring the unknown parameter 'evil\\nname'",
    ]
