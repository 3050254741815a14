"""Runs in the process that reads large bodies, within limits of memory, and at a lower priority than the engine."""

import logging
import os
import resource
import signal
import sys
import traceback
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

from octavo.server.config import ServerConfig
from octavo.server.generation.parameters import ParameterCheck
from octavo.server.generation.texts import Texts
from octavo.server.http.errors import ApiError, BodyTooLarge
from octavo.server.text.template_process import TemplateProcess
from octavo.server.text.tokenizer import Tokenizer

MEMORY = 128 * 1024 * 1024  # bytes by which the process may grow while it reads
NICENESS = 10  # The engine goes first.


@dataclass(frozen=True, slots=True)
class Crashed:
    """Says that reading failed through a mistake of ours."""

    traceback: str


@dataclass(frozen=True, slots=True)
class Reply:
    value: Any = None  # what was asked for, an ApiError or Crashed
    grown: int = 0  # bytes that the process holds beyond those of its start


def main(connection: "Connection[Any, Any]", directory: Path, config: ServerConfig) -> None:
    """Answers until the parent is gone: each question is a function with its arguments, and then a body."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group, and the parent decides.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM))
    with suppress(OSError):
        os.nice(NICENESS)
    logging.basicConfig(format="%(asctime)s %(message)s", stream=sys.stderr)
    tokenizer = Tokenizer.from_directory(directory)
    texts = Texts(tokenizer, config, ParameterCheck(), template_process=TemplateProcess(tokenizer.special_tokens))
    _bound_memory()
    start = _resident()
    inbox: SimpleQueue[tuple[Any, tuple[Any, ...], bytes]] = SimpleQueue()
    Thread(target=_read, args=(connection, inbox), name="reader", daemon=True).start()
    with suppress(OSError):  # The parent may go at any time.
        connection.send(Reply())
        while True:
            value = _answer(texts, *inbox.get())
            connection.send(Reply(value, _resident() - start))
            del value


def _answer(texts: Texts, prepare: Any, arguments: tuple[Any, ...], body: bytes) -> Any:
    try:
        return prepare(texts, body, *arguments)
    except ApiError as error:
        return error.with_traceback(None)
    except MemoryError:
        return BodyTooLarge("The body takes too much memory to read; shorten it.")
    except Exception:
        return Crashed(traceback.format_exc())


def _bound_memory() -> None:
    """Lets the process grow by MEMORY at most. Where the system cannot bound it, nothing is bounded."""
    with suppress(OSError, ValueError, LookupError):
        fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        most = int(fields["VmData"].split()[0]) * 1024 + MEMORY
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def _resident() -> int:
    """Returns the bytes of memory that the process holds; 0 where that cannot be known."""
    with suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    return 0


def _read(connection: "Connection[Any, Any]", inbox: "SimpleQueue[tuple[Any, tuple[Any, ...], bytes]]") -> None:
    """Receives questions while one is answered, which cannot be interrupted; ends the process with its parent."""
    try:
        while True:
            prepare, arguments = connection.recv()
            inbox.put((prepare, arguments, connection.recv_bytes()))
    except (EOFError, OSError):
        os._exit(0)
