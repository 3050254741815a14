"""HttpServer runs an application in uvicorn, and leaves signals and exits to lifecycle.py."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterator
from math import ceil

import uvicorn
from fastapi import FastAPI

from octavo.server.config import ServerConfig
from octavo.server.http.connection import protocol
from octavo.server.http.connections import Connections
from octavo.server.http.descriptors import BACKLOG, accepted_at_once, room_for_connections

TICKS = 3  # of uvicorn, a tenth of a second each, between two looks at the connections
FLUSH_TIME = 2  # seconds in which responses must reach their clients, once every request has ended


class HttpServer(uvicorn.Server):
    """Handles no signals: uvicorn would close its listener at the first one, and raise it again at the end."""

    def __init__(self, app: FastAPI, limits: ServerConfig) -> None:
        self._connections = Connections(limits.limit_concurrency or room_for_connections())
        config = uvicorn.Config(
            app,
            # h11 by name: httptools, if it is installed, would be taken, and loses the body of whoever offers h2c.
            http=protocol(limits, self._connections),
            timeout_keep_alive=ceil(limits.timeout_keep_alive),
            ws="none",
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=FLUSH_TIME,
            server_header=False,
            backlog=accepted_at_once(),
        )
        super().__init__(config)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(BACKLOG)  # asyncio takes one number for those that it accepts at once and those that wait.

    async def on_tick(self, counter: int) -> bool:
        """Is called ten times a second."""
        if counter % TICKS == 0:
            self._connections.check(asyncio.get_running_loop().time())
        return await super().on_tick(counter)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def leave(self) -> None:
        """Ends `serve`. Logs nothing about requests that do not end within FLUSH_TIME.

        They are cancelled, and uvicorn would log a traceback for each, which helps nobody.
        """
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        self.should_exit = True
