"""Every request gets an id and one log line without any text, and every failure is an error object."""

import logging
import re

import pytest

from octavo.server.config import ServerConfig
from tests.server.client import MODEL, Client
from tests.server.fake import replay
from tests.server.vocab import EOS, ids_of

FAILING = ServerConfig((MODEL,), api_keys=("key",))


@pytest.mark.parametrize("given", ["abc-123", "a.b:c/d+e=f_g", "x" * 128])
def test_a_sane_request_id_is_kept(given: str) -> None:
    assert Client().get("/health", x_request_id=given).headers["x-request-id"] == given
    assert Client(config=FAILING).get("/v1/models", x_request_id=given).headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, "a\nb", "ü", '"quoted"'])
def test_any_other_is_replaced(given: str) -> None:
    ids = set()
    for reply in (Client().get("/nothing", x_request_id=given), Client().get("/health", x_request_id=given)):
        assert re.fullmatch("[0-9a-f]{32}", reply.headers["x-request-id"])
        ids.add(reply.headers["x-request-id"])
    assert len(ids) == 2


def test_streams_carry_the_id_too() -> None:
    assert "x-request-id" in Client().chat(stream=True).headers


@pytest.mark.parametrize("stream", [False, True])
def test_one_log_line_a_request(caplog: pytest.LogCaptureFixture, stream: bool) -> None:
    client = Client.replaying(replay([*ids_of("the answer"), EOS], ids_of("x"), cached=2))
    with caplog.at_level(logging.INFO):
        client.chat(messages=[{"role": "user", "content": "the question"}], n=2, stream=stream)
    (line,) = [record.getMessage() for record in caplog.records]
    prompt = len(client.engine.submitted[0].prompt)
    assert re.fullmatch(
        rf"[0-9a-f]{{32}} POST /v1/chat/completions 200 chatcmpl-[0-9a-f]{{32}} model={MODEL} prompt={prompt} cached=2 "
        r"completion=12 admitted=[0-9.]+s ttft=[0-9.]+s finish=stop,length total=[0-9.]+s",
        line,
    )
    assert "the answer" not in caplog.text and "the question" not in caplog.text


def test_text_is_logged_only_when_wanted(caplog: pytest.LogCaptureFixture) -> None:
    client = Client.replaying(replay([*ids_of("the answer"), EOS]), log_text=True)
    with caplog.at_level(logging.INFO):
        client.chat(messages=[{"role": "user", "content": "the\nquestion"}])
    assert "the\\nquestion" in caplog.text and "the answer" in caplog.text


def test_failures_are_logged_and_probes_are_not(caplog: pytest.LogCaptureFixture) -> None:
    client = Client()
    with caplog.at_level(logging.INFO):
        client.get("/health")
        client.get("/metrics")
        client.get("/no\nthing")
    (line,) = [record.getMessage() for record in caplog.records]
    assert re.fullmatch(r"[0-9a-f]{32} GET /no\?thing 404 total=[0-9.]+s", line)
