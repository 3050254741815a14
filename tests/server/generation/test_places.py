"""A full queue is told before a body is read, and those that are being read count."""

import pytest

from octavo.engine.client import Draining, QueueFull, Unavailable
from octavo.server.generation.places import Places
from octavo.server.http.errors import ServiceUnavailable, TooManyRequests
from tests.server.client import Client, each_endpoint
from tests.server.fake import FakeEngineClient


class Narrow(FakeEngineClient):
    """Has two places."""

    def check_room(self, wanted: int) -> None:
        if wanted > 2:
            raise QueueFull("full")


def test_those_that_are_being_read_count() -> None:
    places = Places(Narrow())
    with places.take(), places.take(), pytest.raises(TooManyRequests):
        places.take()
    with places.take():
        pass


def test_what_the_engine_says_is_told() -> None:
    with pytest.raises(ServiceUnavailable):
        Places(FakeEngineClient(refusal=Unavailable("going"))).take()


@each_endpoint
@pytest.mark.parametrize("state", ["full", "draining"])
def test_a_body_is_not_even_parsed(endpoint: str, state: str) -> None:
    client = Client(FakeEngineClient(refusal=QueueFull("full") if state == "full" else None))
    if state == "draining":
        client.engine.state = Draining()
    path = {"complete": "/v1/completions", "chat": "/v1/chat/completions"}[endpoint]
    reply = client.post(path, b"{no JSON at all")
    assert reply.status == (429 if state == "full" else 503)
    assert reply.headers["retry-after"]
