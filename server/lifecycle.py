"""Runs a server process: it listens, loads, serves, drains, and leaves nothing behind."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from types import FrameType
from typing import Any, Protocol

from octavo.engine.client import ManagedEngine
from octavo.server.config import ServerConfig
from octavo.server.http import descriptors
from octavo.server.http.errors import StartupError

logger = logging.getLogger(__name__)

EXIT_TIME = 1.5  # seconds in which the interpreter must end; threads may still be busy with a large prompt
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def listen(host: str, port: int) -> socket.socket:
    """Returns a listening socket; port 0 takes a free one. Raises StartupError.

    It listens before the model is loaded, since two sockets may share an address until one of them listens.
    """
    try:
        host.encode("idna")  # as Python does for a look-up
    except UnicodeError as error:
        message = f"Cannot listen on {host[:100]}, which is no name of a host; choose another with --host."
        raise StartupError(message) from error
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        both = host == "::" and socket.has_dualstack_ipv6()  # listens on every interface, for IPv4 and IPv6
        return socket.create_server((host, port), family=family, backlog=descriptors.BACKLOG, dualstack_ipv6=both)
    except OSError as error:
        reason = str(error.strerror).partition(" (")[0]  # Python repeats the address behind this
        message = f"Cannot listen on {host} port {port} ({reason}); choose another with --host or --port."
        raise StartupError(message) from error


def address(listener: socket.socket) -> str:
    """Returns the URL at which this machine reaches the listener."""
    return url_of(*listener.getsockname()[:2])


def url_of(host: str, port: int) -> str:
    """Returns the URL at which this machine reaches what listens there; every interface is also the loopback."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Http(Protocol):
    """Answers requests at the listener."""

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Answers until `leave` is called."""

    def leave(self) -> None:
        """Makes `serve` end soon."""


def run(make_http: Callable[[], Http], client: ManagedEngine, listener: socket.socket, config: ServerConfig) -> int:
    """Serves until a signal or until the engine has failed for good; returns the exit status.

    It is 0 after a signal, 1 if the engine failed after it had been ready, and 2 if the engine never was ready. The
    engine's process is started first: it imports torch while `make_http`, in a thread, imports what HTTP needs.
    """
    descriptors.raise_limit()  # before the engine's process, which inherits it
    return asyncio.run(_serve(make_http, client, listener, config))


def _exit_soon(status: int) -> None:
    """Ends the process after EXIT_TIME: the event loop and the interpreter would wait for every thread to end."""
    timer = threading.Timer(EXIT_TIME, os._exit, (status,))
    timer.daemon = True
    timer.start()


async def _serve(
    make_http: Callable[[], Http], client: ManagedEngine, listener: socket.socket, config: ServerConfig
) -> int:
    stop, stop_now = asyncio.Event(), asyncio.Event()
    with _signals_set(stop, stop_now):
        client.start()
        server = await _made(make_http, client)
        http = asyncio.create_task(server.serve(sockets=[listener]), name="http")
        try:
            await _first(stop.wait(), client.given_up(), asyncio.wait([http]))
            if stop.is_set():
                count, seconds = client.open_requests, config.drain_timeout
                open_ones = "1 open request has" if count == 1 else f"{count} open requests have"
                logger.info("stopping; %s %g s to end, or until the next signal", open_ones, seconds)
                # The listener stays open meanwhile, so that new requests are answered 503 and not refused a connection.
                await _first(client.drain(config.drain_timeout), stop_now.wait())
        finally:
            server.leave()
            await client.stop()
            await http
        status = _status(client, stop.is_set())
        _exit_soon(status)
        return status


async def _made(make_http: Callable[[], Http], client: ManagedEngine) -> Http:
    """Makes the HTTP server in a thread; if that fails, ends the engine."""
    try:
        return await asyncio.to_thread(make_http)
    except BaseException:
        await client.stop()
        raise


def _status(client: ManagedEngine, asked_to_stop: bool) -> int:
    if asked_to_stop:
        return 0
    return 2 if client.ready is None else 1


async def _first(*awaitables: Awaitable[Any]) -> None:
    """Waits until one of them is done, cancels the others, and raises what the first one raised."""
    tasks = [asyncio.ensure_future(awaitable) for awaitable in awaitables]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()


@contextlib.contextmanager
def _signals_set(stop: asyncio.Event, stop_now: asyncio.Event) -> Iterator[None]:
    """Makes the first signal set `stop` and any other one `stop_now`; after the block signals are ignored.

    loop.add_signal_handler does not fit: closing the loop would bring the default handlers back, and a signal
    that comes while the interpreter ends would then change exit status 0.
    """
    loop = asyncio.get_running_loop()

    def note(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(lambda: stop_now.set() if stop.is_set() else stop.set())

    for number in STOP_SIGNALS:
        signal.signal(number, note)
    try:
        yield
    finally:
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
