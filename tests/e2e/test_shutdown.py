"""SIGTERM and Ctrl-C at every moment: new requests get 503, open ones their time, and nothing is left behind."""

import signal
import time
from collections.abc import Callable

import httpx
import pytest

from tests.e2e.harness import FOREVER, PATIENCE, Server, until
from tests.e2e.streams import Crowd, complete

MARGIN = 5.0  # seconds beyond --drain-timeout that the server may take to be gone

either_signal = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])


def assert_gone(server: Server, since: float, within: float) -> None:
    assert server.exit_status() == 0, server.output
    server.wait_until_nothing_is_left()
    assert time.monotonic() - since < within
    assert "Traceback" not in server.output


@either_signal
def test_while_loading(serve_fake: Callable[..., Server], number: signal.Signals) -> None:
    server = serve_fake(load_seconds=1000)
    server.wait_for_health(503)
    health = httpx.get(f"{server.url}/health", timeout=PATIENCE).json()
    assert "loading" in health["error"]["message"]
    until(lambda: bool(server.engine_pids()), "the engine loads")
    sent = time.monotonic()
    server.send_signal(number)
    assert_gone(server, sent, MARGIN)


@either_signal
def test_in_the_first_moments(serve_fake: Callable[..., Server], number: signal.Signals) -> None:
    """The port is taken before anything slow, and the signals are ours before that."""
    server = serve_fake()
    until(lambda: server.port_is_taken(), "the port is taken")
    server.send_signal(number)
    assert_gone(server, time.monotonic(), PATIENCE)


@either_signal
def test_idle(serve_fake: Callable[..., Server], number: signal.Signals) -> None:
    server = serve_fake()
    server.wait_for_health(200)
    with httpx.Client(timeout=PATIENCE) as connection:  # an idle connection must not hold it up
        connection.get(f"{server.url}/health")
        sent = time.monotonic()
        server.send_signal(number)
        assert_gone(server, sent, MARGIN)


@either_signal
def test_open_streams_are_told_when_their_time_is_up(serve_fake: Callable[..., Server], number: signal.Signals) -> None:
    server = serve_fake("--drain-timeout", "2", step_seconds=0.005, max_num_seqs=16)
    server.wait_for_health(200)
    crowd = Crowd(server.url)
    crowd.add(16, FOREVER)
    server.wait_for_load(running=16)
    sent = time.monotonic()
    server.send_signal(number)
    until(lambda: server.health() == 503, "the drain has begun")
    refused = complete(server.url, [3, 4], 5)
    assert refused.status == 503
    for ending in crowd.endings():
        assert ending.error is not None
        assert "shutting down" in ending.error["message"]
        assert ending.complete
        assert ending.at - sent >= 2
    assert_gone(server, sent, 2 + MARGIN)


def test_open_requests_may_finish(serve_fake: Callable[..., Server]) -> None:
    server = serve_fake("--drain-timeout", str(PATIENCE), step_seconds=0.02, max_num_seqs=16)
    server.wait_for_health(200)
    crowd = Crowd(server.url)
    crowd.add(8, max_tokens=100)
    crowd.add(8, max_tokens=100, streaming=False)
    server.wait_for_load(running=16)
    server.send_signal(signal.SIGTERM)
    assert [ending.finish_reason for ending in crowd.endings()] == ["length"] * 16
    assert all(ending.complete for ending in crowd.endings())
    assert_gone(server, time.monotonic(), MARGIN)


def test_a_second_signal_stops_at_once(serve_fake: Callable[..., Server]) -> None:
    server = serve_fake("--drain-timeout", "1000", step_seconds=0.005)
    server.wait_for_health(200)
    crowd = Crowd(server.url)
    crowd.add(4, FOREVER)
    server.wait_for_load(running=4)
    server.send_signal(signal.SIGINT)
    until(lambda: server.health() == 503, "the drain has begun")
    sent = time.monotonic()
    server.send_signal(signal.SIGINT)
    assert all(ending.error is not None for ending in crowd.endings())
    assert_gone(server, sent, MARGIN)
