"""A client that leaves frees its sequence, whether it streams or not, runs or waits."""

import json
import socket
from collections.abc import Callable

import pytest

from tests.e2e.harness import FOREVER, Server
from tests.e2e.streams import body_of, complete


def open_request(server: Server, stream: bool) -> socket.socket:
    """Sends a request and reads nothing of its answer."""
    body = json.dumps(body_of([3, 4], FOREVER, stream)).encode()
    connection = socket.create_connection(("127.0.0.1", server.port))
    head = f"POST /v1/completions HTTP/1.1\r\nHost: test\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    return connection


@pytest.mark.parametrize("stream", [True, False], ids=["streaming", "whole"])
def test_a_client_that_leaves_frees_its_place(serve_fake: Callable[..., Server], stream: bool) -> None:
    server = serve_fake(step_seconds=0.005, max_num_seqs=1)
    server.wait_for_health(200)
    running = open_request(server, stream)
    server.wait_for_load(running=1)
    queued = open_request(server, stream)
    server.wait_for_load(running=1, waiting=1)
    queued.close()
    server.wait_for_load(running=1, waiting=0)
    running.close()
    server.wait_for_load(running=0)
    assert complete(server.url, [3, 4], 5).finish_reason == "length"
