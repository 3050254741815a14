"""Bounds how long a process is waited for that takes nothing from its pipe: it may have been stopped."""

import socket
import struct
from multiprocessing.connection import Connection
from typing import Any

# Sending to such a process, and receiving the rest of a message that it has begun, raise this after the time.
STANDS_STILL = BlockingIOError


def bound_waits(connection: "Connection[Any, Any]", seconds: float) -> None:
    """Makes each wait for the other end of a duplex pipe raise BlockingIOError after `seconds`."""
    end = socket.socket(fileno=connection.fileno())
    try:
        time = struct.pack("ll", *divmod(int(seconds * 1e6), 1_000_000))
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, time)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, time)
    finally:
        end.detach()
