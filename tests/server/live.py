"""Puts an app of the tests behind a real socket, for clients that bring their own HTTP."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from octavo.server.http.uvicorn_server import HttpServer
from tests.server.client import Client


@contextmanager
def live(client: Client) -> Iterator[str]:
    """Serves the client's app from a thread; yields its URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = HttpServer(client.app, client.config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
