"""The process that reads large bodies starts with the first of them, and never outlives the server."""

import signal
from collections.abc import Callable

import httpx
import pytest

from octavo.server.generation.intake import SMALL
from tests.e2e.harness import PATIENCE, Server, children_of, until


def read_one(server: Server) -> None:
    """Sends a large body, and checks that one more process has read it."""
    before = len(children_of(server.process.pid))
    body = {"prompt": "hi", "max_tokens": 1, "metadata": {"note": "x" * SMALL}}
    answer = httpx.post(f"{server.url}/v1/completions", json=body | {"model": "model"}, timeout=PATIENCE)
    assert answer.status_code in (200, 404), answer.text  # The name of the model is checked there, too.
    assert len(children_of(server.process.pid)) > before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_with_the_server(serve_fake: Callable[..., Server], number: signal.Signals) -> None:
    server = serve_fake()
    server.wait_for_health(200)
    read_one(server)
    server.send_signal(number)
    assert server.exit_status() == 0, server.output
    server.wait_until_nothing_is_left()
    assert "Traceback" not in server.output


def test_it_ends_when_the_server_is_killed(serve_fake: Callable[..., Server]) -> None:
    server = serve_fake()
    server.wait_for_health(200)
    read_one(server)
    server.process.kill()
    server.wait_until_nothing_is_left()


def test_it_ends_when_there_is_nothing_to_read(serve_fake: Callable[..., Server]) -> None:
    server = serve_fake()
    server.wait_for_health(200)
    before = children_of(server.process.pid)
    read_one(server)
    until(lambda: set(children_of(server.process.pid)) <= set(before), "the process has ended")
