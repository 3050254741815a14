"""The HTTP server of an application: uvicorn, told to leave to lifecycle.py what is its business."""

import contextlib
import logging
from collections.abc import Iterator

import uvicorn
from fastapi import FastAPI

FLUSH_TIME = 2  # seconds that responses have to reach their clients once every request has ended


class HttpServer(uvicorn.Server):
    """Leaves the signals alone: uvicorn closes its listener at the first one and raises it again at the end."""

    @classmethod
    def of(cls, app: FastAPI) -> "HttpServer":
        config = uvicorn.Config(
            app, log_config=None, access_log=False, timeout_graceful_shutdown=FLUSH_TIME, server_header=False
        )
        return cls(config)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def leave(self) -> None:
        """Ends `serve`, without a word about requests that do not end within FLUSH_TIME.

        They are cancelled, each with a traceback that would tell nobody anything.
        """
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        self.should_exit = True
