"""create_app makes an app that answers a request from end to end, over a fake engine."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.server.client import MODEL, Client
from tests.server.fake import replay
from tests.server.vocab import EOS, ids_of


def test_a_completion() -> None:
    reply = Client.replaying(replay([*ids_of("there"), EOS])).complete(max_tokens=20)
    assert reply.status == 200
    assert reply.json()["choices"] == [{"index": 0, "text": "there", "logprobs": None, "finish_reason": "stop"}]
    assert reply.json()["usage"]["completion_tokens"] == 6


def test_a_chat_stream() -> None:
    reply = Client.replaying(replay([*ids_of("there"), EOS])).chat(stream=True)
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    deltas = [event["choices"][0]["delta"] for event in reply.events()]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta.get("content", "") for delta in deltas) == "there"


def test_the_app_never_loads_torch() -> None:
    code = "import sys, server.app; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/docs", "/web/app.js", "/health", "/metrics", "/version", "/openapi.json"),
        *("/v1/models", f"/v1/models/{MODEL}"),
    ],
)
def test_head_is_answered_where_get_is(path: str) -> None:
    client = Client()
    head, whole = client.call("HEAD", path, b"", {}), client.get(path)
    assert head.status == whole.status
    assert head.headers["content-type"] == whole.headers["content-type"]


def test_head_is_refused_where_get_is() -> None:
    client = Client()
    assert client.call("HEAD", "/v1/completions", b"", {}).status == 405
    assert client.call("HEAD", "/nothing", b"", {}).status == 404
