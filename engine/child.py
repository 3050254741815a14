"""A Child is a process that answers questions one after the other, and that is killed when one of them takes too much.

Text that may be hostile is read in such processes: grammars, large bodies, templates of clients. A Child ends with its
parent, however that ends, because it then reads the end of its pipe.
"""

import os
import socket
import struct
import subprocess
import sys
import traceback
import weakref
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from queue import SimpleQueue
from threading import Thread
from typing import Any

from octavo.engine.stop_signals import ignore_stop_signals, stop_signals_blocked

START_SECONDS = 60.0  # time to import and to prepare; on an idle machine it is less than a second
_START = "import sys; sys.path[:] = {path!r}; from octavo.engine.child import main; main({descriptor})"

Answer = Callable[[Any], Any]


class ChildFailed(Exception):
    """Says that no answer came. The Child is of no use any more."""


class NotStarted(ChildFailed):
    """Says that the process did not come to answer anything."""


class TooSlow(ChildFailed):
    """Says that the time for an answer is over."""


class Died(ChildFailed):
    """Says that the process ended instead of answering: it may have taken too much memory."""


class Child:
    """A Child is the process as its parent sees it. One thread at a time asks; any may kill."""

    def __init__(self, make: Callable[..., Answer], *arguments: Any) -> None:
        """Starts the process. There make(*arguments) returns what answers; `make` is a function of a module."""
        self._connection, theirs = Pipe()
        descriptor = theirs.fileno()
        code = _START.format(path=sys.path, descriptor=descriptor)
        with stop_signals_blocked():
            # No process of multiprocessing: a daemon among those may have no children, and others are waited for.
            self._process = subprocess.Popen(
                [sys.executable, "-c", code], stdin=subprocess.DEVNULL, pass_fds=[descriptor]
            )
        theirs.close()  # Only the child has it now, so that its death is seen as end-of-file.
        self._work: tuple[Any, ...] | None = (make, arguments)  # None: it was told, and is ready
        self._end = weakref.finalize(self, _end, self._process)

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, question: Any, seconds: float) -> Any:
        """Returns the answer, if it comes within the time. Raises ChildFailed."""
        self._wait_until_ready()
        try:
            return self._exchange(question, seconds)
        except (TimeoutError, BlockingIOError):
            raise TooSlow from None
        except (EOFError, OSError):
            raise Died from None

    def _wait_until_ready(self) -> None:
        if self._work is None:
            return
        try:
            self._exchange(self._work, START_SECONDS)
        except (EOFError, OSError):
            raise NotStarted from None
        self._work = None

    def _exchange(self, message: Any, seconds: float) -> Any:
        _bound_waits(self._connection, seconds)
        self._connection.send(message)
        if not self._connection.poll(seconds):
            raise TimeoutError
        return self._connection.recv()

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        """Ends the process, whatever it does. Whoever asks it gets Died. A Child that nobody holds is killed, too."""
        self._end()


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()


def _bound_waits(connection: "Connection[Any, Any]", seconds: float) -> None:
    """Makes each wait for the other end raise BlockingIOError after `seconds`: that process may have been stopped."""
    end = socket.socket(fileno=connection.fileno())
    try:
        time = struct.pack("ll", *divmod(int(seconds * 1e6), 1_000_000))
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, time)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, time)
    finally:
        end.detach()


def main(descriptor: int) -> None:
    """Runs in the process: receives questions while one is answered, which nothing can interrupt."""
    ignore_stop_signals()
    connection: Connection[Any, Any] = Connection(descriptor)
    inbox: SimpleQueue[Any] = SimpleQueue()
    Thread(target=_answer_all, args=(connection, inbox), name="answers", daemon=True).start()
    try:
        while True:
            inbox.put(connection.recv())
    except (EOFError, OSError):
        os._exit(0)


def _answer_all(connection: "Connection[Any, Any]", inbox: "SimpleQueue[Any]") -> None:
    """Runs in a thread of the process. What it cannot answer ends the process."""
    try:
        make, arguments = inbox.get()
        answer: Answer = make(*arguments)
        _send(connection, None)
        while True:
            _send(connection, answer(inbox.get()))  # No name holds a question that was answered.
    except MemoryError:
        os._exit(1)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def _send(connection: "Connection[Any, Any]", answer: Any) -> None:
    try:
        connection.send(answer)
    except OSError:
        os._exit(0)  # The parent may go at any time.
