"""Silent, slow and hostile clients are told so, or are cut off, over real sockets. No test asserts a time."""

import gzip
import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import pytest

from octavo.server.config import ServerConfig
from tests.server.client import MODEL, Client
from tests.server.fake import READY, FakeEngineClient, outputs_of
from tests.server.live import live
from tests.server.vocab import byte_level

SOON = 0.2  # seconds, for a limit that a test waits for
WAIT = 60  # seconds after which a socket of a test gives up
POST = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
BODY = json.dumps({"model": MODEL, "prompt": "hi"}).encode()


@contextmanager
def connected(client: Client | None = None, **limits: Any) -> Iterator[socket.socket]:
    """Yields a socket that is connected to a server with these limits."""
    client = client or Client(config=ServerConfig((MODEL,), **limits))
    with live(client) as url, connect(url) as connection:
        yield connection


def connect(url: str) -> socket.socket:
    where = urlsplit(url)
    assert where.hostname is not None
    return socket.create_connection((where.hostname, where.port or 80), timeout=WAIT)


def answer(connection: socket.socket) -> tuple[int, dict[str, str], Any]:
    """Returns status, headers and error of an answer after which the server closes."""
    data = b""
    while chunk := connection.recv(65536):
        data += chunk
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    return int(first.split()[1]), headers, json.loads(body)["error"]


def refused(connection: socket.socket, *parts: bytes) -> tuple[int, str]:
    """Sends parts of a request; returns the status and the message of the refusal."""
    for part in parts:
        connection.sendall(part)
    status, headers, error = answer(connection)
    assert headers["connection"] == "close"
    assert error["type"] == "invalid_request_error"
    return status, error["message"]


def is_closed(connection: socket.socket) -> bool:
    """Waits until the server closes the connection without a word."""
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


def whole_answer(connection: socket.socket) -> bytes:
    """Returns an answer whose connection stays open."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65536)
    head, _, body = data.partition(b"\r\n\r\n")
    length = next(
        int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")
    )
    while len(body) < length:
        body += connection.recv(65536)
    return head


def test_whoever_says_nothing_is_cut_off() -> None:
    with connected(timeout_header=SOON) as connection:
        assert is_closed(connection)


@pytest.mark.parametrize("begun", [b"P", b"POST / HTTP/1.1\r\n", b"POST / HTTP/1.1\r\nHost: a\r\nX: "])
def test_a_head_that_never_ends_is_told_so(begun: bytes) -> None:
    with connected(timeout_header=SOON) as connection:
        status, message = refused(connection, begun)
        assert status == 408
        assert "head" in message


def test_an_idle_connection_is_closed_after_its_own_time() -> None:
    with connected(timeout_keep_alive=SOON, timeout_header=WAIT) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
        assert b"200" in whole_answer(connection)
        assert is_closed(connection)


def test_a_second_head_has_the_same_limit_as_the_first() -> None:
    with connected(timeout_header=SOON) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
        assert b"200" in whole_answer(connection)
        assert refused(connection, b"GET /hea")[0] == 408


@pytest.mark.parametrize(
    "begun",
    [
        POST + b"Content-Length: 100\r\n\r\n",
        POST + b"Content-Length: 100\r\n\r\n{",
        POST + b"Transfer-Encoding: chunked\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFF\r\n{",
        POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n0\r\nX",
    ],
)
def test_a_body_that_stops_coming_is_told_so(begun: bytes) -> None:
    with connected(timeout_body=SOON) as connection:
        status, message = refused(connection, begun)
        assert status == 408
        assert "body" in message


def test_a_body_that_drips_is_told_so() -> None:
    with connected(timeout_body=SOON) as connection:
        connection.sendall(POST + b"Content-Length: 100000\r\n\r\n")
        connection.settimeout(SOON / 4)
        while True:
            connection.sendall(b" ")
            try:
                start = connection.recv(12)
                break
            except TimeoutError:
                continue
        assert start == b"HTTP/1.1 408"


def test_a_client_that_never_reads_is_cut_off() -> None:
    endless = FakeEngineClient(lambda request: outputs_of(request, [65] * 10**5), replace(READY, max_model_len=10**6))
    client = Client(endless, byte_level(), ServerConfig((MODEL,), timeout_send=SOON))
    body = json.dumps({"model": MODEL, "prompt": "hi", "max_tokens": 10**5, "stream": True}).encode()
    with live(client) as url, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        where = urlsplit(url)
        connection.settimeout(WAIT)
        connection.connect((where.hostname, where.port))
        connection.sendall(POST + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        while not (client.engine.generations and client.engine.generations[0].closed):
            time.sleep(0.01)  # The server gives the work up, though nobody has read a byte or left.


@pytest.mark.parametrize(
    ("request_head", "limits", "status", "named"),
    [
        (POST + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n", {}, 400, "Transfer-Encoding"),
        (
            POST + b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
            {},
            400,
            "Content-Length",
        ),
        (POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n", {}, 400, "Content-Length"),
        (POST + b"X: a\r\n" * 300 + b"\r\n", {}, 431, "256"),
        (POST + b"X: a\r\n" * 3 + b"\r\n", {"h11_max_header_count": 4}, 431, "4"),
        (POST + b"X: " + b"a" * 70_000, {}, 431, "65,536 bytes"),
        (POST + b"X: " + b"a" * 2_000 + b"\r\n\r\n", {"h11_max_incomplete_event_size": 2_000}, 431, "2,000 bytes"),
        (
            POST.replace(b"ions", b"ions?" + b"a" * 2_000) + b"\r\n",
            {"h11_max_incomplete_event_size": 2_000},
            431,
            "head",
        ),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n1;" + b"a" * 70_000, {}, 400, "no HTTP"),
        (b"\x16\x03\x01\x02\x00\x01", {"timeout_header": SOON}, 400, "HTTP"),
        (b"nonsense\r\n\r\n", {}, 400, "HTTP"),
    ],
)
def test_what_is_no_sound_request_is_refused(
    request_head: bytes, limits: dict[str, Any], status: int, named: str
) -> None:
    with connected(**limits) as connection:
        got, message = refused(connection, request_head)
        assert got == status
        assert named in message


def test_many_tiny_chunks_are_refused() -> None:
    with connected() as connection:
        connection.sendall(POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\n \r\n" * 20_000)
        assert connection.recv(12) == b"HTTP/1.1 400"


def test_a_body_in_small_chunks_is_read() -> None:
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (BODY[i : i + 1] for i in range(len(BODY))))
    with connected() as connection:
        connection.sendall(POST + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n")
        assert whole_answer(connection).startswith(b"HTTP/1.1 200")


def test_an_offer_of_another_protocol_is_passed_over() -> None:
    offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
    with connected() as connection:
        connection.sendall(POST + offer + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY)
        assert whole_answer(connection).startswith(b"HTTP/1.1 200")


def test_the_rest_of_a_refused_body_may_still_come() -> None:
    with connected(max_body_bytes=10) as connection:
        connection.sendall(POST + b"Content-Length: 1000000\r\n\r\n")
        assert whole_answer(connection).startswith(b"HTTP/1.1 413")
        connection.sendall(b" " * 1_000_000 + b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
        assert whole_answer(connection).startswith(b"HTTP/1.1 200")


def test_the_connection_that_was_idle_longest_makes_room() -> None:
    with live(Client(config=ServerConfig((MODEL,), limit_concurrency=2))) as url:
        first, second, third = (connect(url) for _ in range(3))
        with first, second, third:
            assert is_closed(first)
            for connection in (second, third):
                connection.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
                assert whole_answer(connection).startswith(b"HTTP/1.1 200")


def test_busy_connections_keep_their_place() -> None:
    waiting = FakeEngineClient(lambda request: [None])
    with live(Client(waiting, config=ServerConfig((MODEL,), limit_concurrency=1))) as url, connect(url) as busy:
        busy.sendall(POST + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY)
        while not waiting.submitted:
            time.sleep(0.01)
        with connect(url) as other:
            status, headers, error = answer(other)
            assert (status, error["code"]) == (503, "engine_unavailable")
            assert "retry-after" in headers


@pytest.mark.parametrize("coding", ["gzip", "x-gzip"])
def test_a_compressed_body_over_a_socket(coding: str) -> None:
    packed = gzip.compress(BODY)
    with connected() as connection:
        head = POST + b"Content-Encoding: %b\r\nContent-Length: %d\r\n\r\n" % (coding.encode(), len(packed))
        connection.sendall(head + packed)
        assert whole_answer(connection).startswith(b"HTTP/1.1 200")
