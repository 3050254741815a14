"""Every failure is sent as OpenAI's error object, with the status that clients act on, and without the input."""

import json
from typing import Any

import pytest

from octavo.engine.client import Draining, Loading
from octavo.server.config import ServerConfig
from octavo.server.http.errors import MAX_MESSAGE, ApiError, InvalidRequest, error_response
from tests.server.client import MODEL, Client
from tests.server.fake import FakeEngineClient
from tests.server.vocab import byte_level

GOOD = {"model": MODEL, "prompt": "hi"}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nope",
        b'{"model": "a"',
        b'{"prompt": "\xed\xa0\x80"}',
        b'{"x": ' + b"[" * 100_000 + b"}",
        b'{"max_tokens": ' + b"9" * 100_000 + b"}",
        b'{"unknown": ' + b"9" * 100_000 + b"}",
    ],
)
def test_what_is_not_json(body: bytes) -> None:
    reply = Client().post("/v1/completions", body)
    assert (reply.status, reply.error["type"], reply.error["param"]) == (400, "invalid_request_error", None)
    assert "not valid JSON" in reply.error["message"]


@pytest.mark.parametrize("body", [b"[]", b"null", b'"text"', b"5"])
def test_json_that_is_no_object(body: bytes) -> None:
    reply = Client().post("/v1/chat/completions", body)
    assert reply.status == 400 and reply.error["message"] == "The body must be a JSON object."


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
def test_a_body_of_another_type(kind: str) -> None:
    reply = Client().post("/v1/completions", GOOD, content_type=kind)
    assert reply.status == 400 and "application/json" in reply.error["message"]


@pytest.mark.parametrize("kind", ["application/json", "application/json; charset=utf-8", "Application/JSON"])
def test_json_by_its_names(kind: str) -> None:
    assert Client().call("POST", "/v1/completions", json.dumps(GOOD).encode(), {"content-type": kind}).status == 200
    assert Client().call("POST", "/v1/completions", json.dumps(GOOD).encode(), {}).status == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/web/nothing.js", 404),
        ("GET", "/v1", 404),
        ("POST", "/v1/embeddings", 404),
        ("GET", "/v1/models/", 404),
        ("GET", "/v1/models/another", 404),
        ("GET", "/v1/" + "x" * 5000, 404),
        ("GET", "/v1/completions", 405),
        ("DELETE", "/v1/models", 405),
        ("POST", "/health", 405),
        ("POST", "/metrics", 405),
    ],
)
def test_unknown_paths_and_wrong_methods(method: str, path: str, status: int) -> None:
    reply = Client().call(method, path, b"", {})
    assert (reply.status, reply.error["type"]) == (status, "invalid_request_error")
    assert reply.headers["content-type"] == "application/json"
    assert ("allow" in reply.headers) == (status == 405)


@pytest.mark.parametrize(
    ("parameters", "param", "code"),
    [
        ({"temperature": 2.5}, "temperature", "decimal_above_max_value"),
        ({"temperature": -1}, "temperature", "decimal_below_min_value"),
        ({"temperature": "1"}, "temperature", "invalid_type"),
        ({"top_p": 1.1}, "top_p", "decimal_above_max_value"),
        ({"max_tokens": -1}, "max_tokens", "integer_below_min_value"),
        ({"max_tokens": 1.5}, "max_tokens", "invalid_type"),
        ({"top_k": 2**31}, "top_k", "integer_above_max_value"),
        ({"seed": 2**63}, "seed", "integer_above_max_value"),
        ({"n": 0}, "n", "integer_below_min_value"),
        ({"n": 129}, "n", "integer_above_max_value"),
        ({"stop": ["a"] * 129}, "stop", "array_above_max_length"),
        ({"stop": "a" * 1025}, "stop", "string_above_max_length"),
        ({"stop": ["a" * 1025]}, "stop", "string_above_max_length"),
        ({"stop": 5}, "stop", "invalid_type"),
        ({"stop": [5]}, "stop", "invalid_type"),
        ({"logit_bias": {"5": 101}}, "logit_bias", "decimal_above_max_value"),
        ({"logit_bias": {"five": 1}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {str(id): 1 for id in range(1025)}}, "logit_bias", "object_above_max_properties"),
        ({"logit_bias": []}, "logit_bias", "invalid_type"),
        ({"stop_token_ids": [-1]}, "stop_token_ids", "integer_below_min_value"),
        ({"stream": False, "stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
        ({"messages": []}, "messages", "empty_array"),
        ({"messages": [{"role": "wizard", "content": "a"}]}, "messages.0.role", "invalid_value"),
        ({"messages": [{"content": "a"}]}, "messages.0.role", "missing_required_parameter"),
        ({"messages": 5}, "messages", "invalid_type"),
        ({"tools": [{"type": "function"}]}, "tools.0.function", "missing_required_parameter"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value"),
        ({"audio": {"voice": "x"}}, "audio", "unsupported_parameter"),
        ({"functions": [{"name": "f"}]}, "functions", "unsupported_parameter"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages.0.tool_call_id", "missing_required_parameter"),
        ({"messages": [{"role": "user"}]}, "messages.0.content", "missing_required_parameter"),
        ({"modalities": ["audio"]}, "modalities", "unsupported_value"),
        ({"max_tokens": 10**6}, "messages", "context_length_exceeded"),
    ],
)
def test_the_codes_of_openai(parameters: dict[str, Any], param: str, code: str) -> None:
    for stream in (False, True):
        reply = Client().chat(**({"stream": stream} | parameters))
        assert (reply.status, reply.error["param"], reply.error["code"]) == (400, param, code)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/completions", {"model": MODEL}, "prompt"),
        ("/v1/completions", {"prompt": "hi"}, "model"),
        ("/v1/chat/completions", {"model": MODEL}, "messages"),
        ("/v1/responses", {"model": MODEL}, "input"),
        ("/v1/responses", {"model": MODEL, "input": [{"type": "function_call"}]}, "input.0.call_id"),
    ],
)
def test_what_is_missing_has_a_code(path: str, body: dict[str, Any], param: str) -> None:
    reply = Client().post(path, body)
    assert (reply.status, reply.error["param"], reply.error["code"]) == (400, param, "missing_required_parameter")


def test_a_body_at_fault_has_a_code() -> None:
    codes = [Client().post("/v1/completions", body).error["code"] for body in (b"{", b"[]")]
    assert codes == ["invalid_json", "invalid_type"]
    kept = Client().respond(previous_response_id="resp_1").error
    assert (kept["param"], kept["code"]) == ("previous_response_id", "unsupported_parameter")


def test_anthropics_errors_tell_the_id_of_the_request() -> None:
    client = Client(config=ServerConfig((MODEL,), max_body_bytes=1000))
    refused = client.message(temperature=-1)
    large = client.message(metadata={"user_id": "S" * 2000})
    for reply, type in ((refused, "invalid_request_error"), (large, "request_too_large")):
        assert reply.error["type"] == type
        assert reply.json()["request_id"] == reply.headers["request-id"] == reply.headers["x-request-id"]
    assert (refused.status, large.status) == (400, 413)
    assert client.get("/v1/messages", **{"x-request-id": "mine"}).json()["request_id"] == "mine"
    assert client.message().headers["request-id"]
    assert "request-id" in client.get("/v1/models", **{"anthropic-version": "2023-06-01"}).headers
    assert "request-id" not in client.get("/v1/models").headers


def test_an_unknown_model() -> None:
    for reply in (Client().complete(model="gpt-9"), Client().chat(model="gpt-9"), Client().get("/v1/models/gpt-9")):
        assert (reply.status, reply.error["code"], reply.error["param"]) == (404, "model_not_found", "model")


@pytest.mark.parametrize(
    "parameters",
    [
        {"temperature": "S" * 100_000},
        {"stop": ["S"] * 100_000},
        {"prompt": {"S" * 100_000: "S" * 100_000}},
        {"model": "S" * 100_000},
        {"n": {"S" * 100_000: 1}},
        {"best_of": "S" * 100_000},
    ],
)
def test_a_large_input_is_not_echoed(parameters: dict[str, Any]) -> None:
    reply = Client().complete(**parameters)
    assert reply.status in (400, 404)
    assert len(reply.body) < 2 * MAX_MESSAGE


@pytest.mark.parametrize(
    "extra", [{"S" * 100_000: 1}, {"\x00": 1}, {"model_config": 1}, {"__class__": 1}, {"check": 1}]
)
def test_strange_names_are_unknown_parameters(extra: dict[str, Any]) -> None:
    assert Client().complete(**extra).status == 200


def test_a_mistake_of_ours_is_a_500_without_its_details(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(FakeEngineClient):
        def submit(self, requests: Any) -> Any:
            raise RuntimeError("a secret detail")

    reply = Client(Broken()).complete()
    assert (reply.status, reply.error["code"]) == (500, "internal_error")
    assert "secret" not in reply.error["message"]
    assert "a secret detail" in caplog.text
    assert "x-request-id" in reply.headers


def test_errors_come_before_the_stream_begins() -> None:
    for parameters in ({"temperature": 9}, {"model": "no"}, {"max_tokens": 10**6}, {"tools": [{}]}):
        reply = Client().chat(stream=True, **parameters)
        assert reply.status in (400, 404)
        assert reply.headers["content-type"] == "application/json"


@pytest.mark.parametrize("state", [Loading(), Draining()])
def test_an_engine_that_is_away(state: Any) -> None:
    client = Client(FakeEngineClient(state=state))
    for reply in (client.complete(), client.chat(stream=True)):
        assert (reply.status, reply.error["code"]) == (503, "engine_unavailable")
        assert float(reply.headers["retry-after"]) <= 120
    assert client.get("/v1/models").status == 200


def test_messages_and_params_are_cut() -> None:
    error = InvalidRequest("m" * 10_000, "p" * 10_000)
    assert len(error_response(error, "/v1/completions", "id").body) < 3 * MAX_MESSAGE


def test_every_class_has_its_own_status_or_code() -> None:
    def tree(cls: type[ApiError]) -> list[type[ApiError]]:
        return [cls, *(sub for child in cls.__subclasses__() for sub in tree(child))]

    pairs = [(cls.status, cls.code) for cls in tree(ApiError)]
    assert len(set(pairs)) == len(pairs)


def test_too_large_a_body() -> None:
    client = Client(config=ServerConfig((MODEL,), max_body_bytes=1000))
    body = json.dumps(GOOD | {"user": "S" * 70_000}).encode()
    announced = {"content-type": "application/json", "content-length": str(len(body))}
    for headers in (announced, {"content-type": "application/json"}, announced | {"content-length": "9" * 5000}):
        reply = client.call("POST", "/v1/completions", body, headers)
        assert (reply.status, reply.error["code"]) == (413, "request_too_large")
    assert client.complete().status == 200


def test_lone_surrogates_never_break_the_server() -> None:
    for text in ("\ud800", "a\udfffb"):
        body = {"model": MODEL, "messages": [{"role": "user", "content": text}], "stop": text, "user": text}
        assert Client(tokenizer=byte_level()).post("/v1/chat/completions", body).status == 200
