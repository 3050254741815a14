"""After SIGTERM or Ctrl-C, at any moment, new requests get 503, open ones their time, and nothing is left behind."""

import signal
import socket
import time
from collections.abc import Callable

import httpx
import pytest

from tests.e2e.harness import FOREVER, PATIENCE, Server, until
from tests.e2e.streams import Crowd, complete
from tests.fake_engine import LAST_TOKEN

either_signal = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])


def assert_gone(server: Server) -> None:
    """Waits for the end of the server. What could hold it up in these tests would do so for longer than this waits."""
    assert server.exit_status() == 0, server.output
    server.wait_until_nothing_is_left()
    assert "Traceback" not in server.output


@either_signal
def test_while_loading(serve_fake: Callable[..., Server], number: signal.Signals) -> None:
    server = serve_fake(load_seconds=1000)
    server.wait_for_health(503)
    health = httpx.get(f"{server.url}/health", timeout=PATIENCE).json()
    assert "loading" in health["error"]["message"]
    until(lambda: bool(server.engine_pids()), "the engine loads")
    server.send_signal(number)
    assert_gone(server)


@either_signal
def test_in_the_first_moments(serve_fake: Callable[..., Server], number: signal.Signals) -> None:
    """The port is taken before anything slow, and the signals are ours before that."""
    server = serve_fake()
    until(lambda: server.port_is_taken(), "the port is taken")
    server.send_signal(number)
    assert_gone(server)


@either_signal
def test_idle(serve_fake: Callable[..., Server], number: signal.Signals) -> None:
    server = serve_fake()
    server.wait_for_health(200)
    address = ("127.0.0.1", server.port)
    with httpx.Client(timeout=PATIENCE) as idle, socket.create_connection(address) as silent:
        idle.get(f"{server.url}/health")
        silent.sendall(b"GET /health HTTP/1.1\r\n")
        server.send_signal(number)  # Neither connection holds it up.
        assert_gone(server)


@either_signal
def test_open_streams_are_told_when_their_time_is_up(serve_fake: Callable[..., Server], number: signal.Signals) -> None:
    server = serve_fake("--drain-timeout", "2", step_seconds=0.005, max_num_seqs=16)
    server.wait_for_health(200)
    crowd = Crowd(server.url)
    crowd.add(16, FOREVER)
    server.wait_for_load(running=16)
    sent = time.monotonic()
    server.send_signal(number)
    for ending in crowd.endings():
        assert ending.error is not None
        assert "shutting down" in ending.error["message"]
        assert ending.complete
        assert ending.at - sent >= 2
    assert_gone(server)


def test_open_requests_may_finish_and_no_new_ones_begin(serve_fake: Callable[..., Server]) -> None:
    server = serve_fake("--drain-timeout", str(2 * PATIENCE), max_num_seqs=16, held=[LAST_TOKEN])
    server.wait_for_health(200)
    crowd = Crowd(server.url)
    crowd.add(8, max_tokens=100)
    crowd.add(8, max_tokens=100, streaming=False)
    server.wait_for_load(running=16)
    server.send_signal(signal.SIGTERM)
    until(lambda: server.health() == 503, "the drain has begun")
    assert complete(server.url, [3, 4], 5).status == 503
    server.release(LAST_TOKEN)
    assert [ending.finish_reason for ending in crowd.endings()] == ["length"] * 16
    assert all(ending.complete for ending in crowd.endings())
    assert_gone(server)


def test_a_second_signal_stops_at_once(serve_fake: Callable[..., Server]) -> None:
    server = serve_fake("--drain-timeout", "1000", step_seconds=0.005)
    server.wait_for_health(200)
    crowd = Crowd(server.url)
    crowd.add(4, FOREVER)
    server.wait_for_load(running=4)
    server.send_signal(signal.SIGINT)
    until(lambda: server.health() == 503, "the drain has begun")
    server.send_signal(signal.SIGINT)
    assert all(ending.error is not None for ending in crowd.endings())
    assert_gone(server)


@either_signal
def test_a_body_that_is_still_coming_is_told(serve_fake: Callable[..., Server], number: signal.Signals) -> None:
    server = serve_fake()
    server.wait_for_health(200)
    with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as slow:
        slow.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{")
        until(lambda: server.health() == 200, "the head has been read")
        server.send_signal(number)
        answer = b"".join(iter(lambda: slow.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 503 ") and b"The server is shutting down." in answer
    assert_gone(server)
