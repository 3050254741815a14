"""The choices of a request are admitted together or not at all, and never past the bounds of the engine."""

import gc
import tracemalloc
from dataclasses import replace

import pytest

from octavo.engine.client import QueueFull
from tests.server.client import Client
from tests.server.fake import READY, FakeEngineClient


def test_all_choices_are_submitted_together() -> None:
    client = Client()
    client.complete(prompt=["a", "b"], n=3)
    assert len(client.engine.generations) == 1
    assert len({request.id for request in client.engine.submitted}) == 6


def test_what_is_refused_leaves_nothing_behind() -> None:
    client = Client(FakeEngineClient(refusal=QueueFull("full")))
    assert client.complete(n=2).status == 429
    assert client.engine.generations == []


@pytest.mark.parametrize(("prompts", "n", "status"), [(16, 1, 200), (4, 4, 200), (17, 1, 400), (3, 6, 400)])
def test_the_bound_on_choices(prompts: int, n: int, status: int) -> None:
    assert Client().complete(prompt=["a"] * prompts, n=n).status == status


def test_the_bounds_are_those_of_the_engine_of_the_moment() -> None:
    client = Client()
    assert client.complete(max_tokens=200).status == 200
    client.engine.state = replace(READY, max_model_len=100)
    assert client.complete(max_tokens=200).status == 400


def test_the_log_has_the_id_of_the_response(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        reply = Client().complete()
    assert reply.json()["id"] in caplog.text


def test_a_refused_body_is_not_kept() -> None:
    """An error refers to what it was raised from, which must not wait for the next collection of garbage."""
    client = Client()
    client.complete()
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        for number in range(8):
            assert client.complete(prompt=f"{number}" * 10**6).status == 400
        assert tracemalloc.get_traced_memory()[0] < 3 * 10**6
    finally:
        tracemalloc.stop()
        gc.enable()
