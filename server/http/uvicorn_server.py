"""HttpServer runs an application in uvicorn, and leaves signals and exits to lifecycle.py."""

import contextlib
import logging
from collections.abc import Iterator

import uvicorn
from fastapi import FastAPI

FLUSH_TIME = 2  # seconds in which responses must reach their clients, once every request has ended


class HttpServer(uvicorn.Server):
    """Handles no signals: uvicorn would close its listener at the first one, and raise it again at the end."""

    @classmethod
    def of(cls, app: FastAPI) -> "HttpServer":
        config = uvicorn.Config(
            app,
            http="h11",  # httptools, if it is installed, would be taken, and loses the body of whoever offers h2c
            ws="none",
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=FLUSH_TIME,
            server_header=False,
        )
        return cls(config)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def leave(self) -> None:
        """Ends `serve`. Logs nothing about requests that do not end within FLUSH_TIME.

        They are cancelled, and uvicorn would log a traceback for each, which helps nobody.
        """
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        self.should_exit = True
