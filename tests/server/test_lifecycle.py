"""The listener opens, and the engine starts first. tests/e2e/test_shutdown.py tests signals, drains and exits."""

import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import pytest

from octavo.engine.config import EngineConfig
from octavo.engine.process.client import ProcessClient
from octavo.server import lifecycle
from octavo.server.config import ServerConfig
from octavo.server.http.errors import StartupError
from octavo.server.lifecycle import address, listen
from tests.fake_engine import Behaviour, fake_build

PATIENCE = 60  # seconds; the machine may be busy


def test_a_listener_accepts_before_anything_is_served() -> None:
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        assert address(listener) == f"http://127.0.0.1:{port}"
        socket.create_connection(("127.0.0.1", port)).close()


def test_every_interface_is_reached_by_the_loopback() -> None:
    with listen("0.0.0.0", 0) as listener:
        assert address(listener).startswith("http://127.0.0.1:")


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6")
def test_ipv6() -> None:
    try:
        listener = listen("::1", 0)
    except StartupError:
        pytest.skip("no IPv6 address")
    with listener:
        assert address(listener).startswith("http://[::1]:")


def test_a_port_in_use_is_known_at_once() -> None:
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(StartupError, match=rf"port {port} \(Address already in use\); choose another"):
            listen("127.0.0.1", port)


def test_an_address_of_another_machine() -> None:
    with pytest.raises(StartupError, match=r"Cannot listen on 192\.0\.2\.1 port 8000"):
        listen("192.0.2.1", 8000)


def is_alive(pid: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


def test_the_engine_is_begun_before_http_and_ends_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "STOP_SIGNALS", ())  # this process's signals belong to the tests
    lives = tmp_path / "lives"
    client = ProcessClient(EngineConfig(model=""), fake_build(Behaviour(load_seconds=1000, lives=lives)))

    def make_http() -> NoReturn:
        deadline = time.monotonic() + PATIENCE
        while not (lives.exists() and lives.read_text().endswith("\n")) and time.monotonic() < deadline:
            time.sleep(0.01)
        raise ModuleNotFoundError("no HTTP")

    with listen("127.0.0.1", 0) as listener, pytest.raises(ModuleNotFoundError, match="no HTTP"):
        lifecycle.run(make_http, client, listener, ServerConfig(("tiny",)))
    assert not is_alive(int(lives.read_text()))
