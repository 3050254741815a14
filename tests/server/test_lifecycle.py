"""The listener and its address. Signals, drains and exits need real processes: tests/e2e/test_shutdown.py."""

import socket

import pytest

from server.errors import StartupError
from server.lifecycle import address, listen


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
