"""/health says whether the engine is ready and, if not, why."""

from typing import Any

import pytest

from octavo.engine.api import Progress
from octavo.engine.client import Draining, Failed, Loading
from tests.server.client import Client
from tests.server.fake import FakeEngineClient


def test_ready() -> None:
    reply = Client().get("/health")
    assert (reply.status, reply.json()) == (200, {"status": "ok"})


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (Loading(), ["loading"]),
        (Loading(Progress("loading weights", 12, 48)), ["loading weights", "12 of 48", "25 %"]),
        (Loading(Progress("compiling", 0, 0)), ["compiling"]),
        (Loading(None, "the process was killed"), ["killed", "restarted"]),
        (Loading(Progress("loading weights", 1, 2), "the process was killed"), ["killed", "50 %"]),
        (Draining(), ["shutting down"]),
        (Failed("it failed five times"), ["five times", "exit"]),
    ],
)
def test_not_ready(state: Any, words: list[str]) -> None:
    reply = Client(FakeEngineClient(state=state)).get("/health")
    assert (reply.status, reply.error["code"]) == (503, "engine_unavailable")
    assert all(word in reply.error["message"] for word in words)
    assert "retry-after" in reply.headers
