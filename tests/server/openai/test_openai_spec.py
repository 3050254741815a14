"""Tests that the validator refuses what it should: a check that accepts everything proves nothing."""

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from jsonschema.exceptions import ValidationError as SchemaError
from pydantic import ValidationError

from tests.server.client import Client, Reply
from tests.server.fake import replay
from tests.server.openai.openai_spec import validate, validate_stream
from tests.server.vocab import EOS, ids_of

REFUSED = (AssertionError, SchemaError, ValidationError, KeyError)


def reply(stream: bool) -> Reply:
    client = Client.replaying(replay([*ids_of("ab"), EOS]))
    return client.chat(stream=stream, logprobs=True, stream_options={"include_usage": True} if stream else None)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda body: body.update(extra=1),
        lambda body: body.pop("id"),
        lambda body: body.update(created="now"),
        lambda body: body.update(object="text_completion"),
        lambda body: body["choices"][0].update(finish_reason=None),
        lambda body: body["choices"][0].update(finish_reason="abort"),
        lambda body: body["choices"][0]["message"].update(extra=1),
        lambda body: body["usage"].update(prompt_tokens=1.5),
        lambda body: body["choices"][0]["logprobs"]["content"][0].update(bytes="a"),
    ],
)
def test_a_spoilt_response(spoil: Callable[[Any], None]) -> None:
    body = reply(stream=False).json()
    spoil(body)
    with pytest.raises(REFUSED):
        validate("/v1/chat/completions", "POST", 200, json.dumps(body).encode())


@pytest.mark.parametrize(
    "spoil",
    [
        lambda chunks: chunks[0]["choices"][0]["delta"].pop("role"),
        lambda chunks: chunks[1]["choices"][0]["delta"].update(role="assistant"),
        lambda chunks: chunks[1].update(id="another"),
        lambda chunks: chunks[1].pop("usage"),
        lambda chunks: chunks[1].update(choices=[]),
        lambda chunks: chunks[1]["choices"][0].update(finish_reason="stop"),
        lambda chunks: chunks.insert(1, chunks[-1]),
        lambda chunks: chunks.pop(-2),
        lambda chunks: chunks.append({"error": {"message": "m"}}),
        lambda chunks: chunks[1].update(extra=1),
    ],
)
def test_a_spoilt_stream(spoil: Callable[[Any], None]) -> None:
    chunks = copy.deepcopy(reply(stream=True).events())
    spoil(chunks)
    with pytest.raises(REFUSED):
        validate_stream("/v1/chat/completions", framed([json.dumps(chunk) for chunk in chunks]))


def framed(data: list[str]) -> list[str]:
    return [line for item in [*data, "[DONE]"] for line in (f"data: {item}", "")]


def test_spoilt_framing() -> None:
    lines = reply(stream=True).lines
    validate_stream("/v1/chat/completions", [": keep-alive", "", *lines])
    for spoilt in (
        lines[:-3],
        [*lines, "data: [DONE]", ""],
        [*lines[:1], *lines[2:]],
        ["x", *lines],
    ):
        with pytest.raises(REFUSED):
            validate_stream("/v1/chat/completions", spoilt)


@pytest.mark.parametrize(
    ("status", "body"),
    [(422, {}), (400, {"detail": "no"}), (400, {"error": {"message": "m", "type": "t", "param": None}})],
)
def test_spoilt_errors(status: int, body: dict[str, Any]) -> None:
    with pytest.raises(REFUSED):
        validate("/v1/completions", "POST", status, json.dumps(body).encode())
