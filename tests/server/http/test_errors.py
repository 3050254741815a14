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
        b"\xff\xfe",
        b'{"model": "a"',
        b'{"prompt": "\\ud800"}',
        b'{"\\udfff": 1}',
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
    assert len(error_response(error, "/v1/completions").body) < 3 * MAX_MESSAGE


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
        assert Client(tokenizer=byte_level()).post("/v1/chat/completions", body).status == 400
