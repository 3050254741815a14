"""Renders templates of clients in a process of their own, which is killed when one takes too much time or memory."""

import subprocess
import sys
import weakref
from collections.abc import Mapping, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from octavo.server.http.errors import ApiError, InvalidRequest, ServiceUnavailable
from octavo.server.text.patience import STANDS_STILL, bound_waits
from octavo.server.text.template import Rendering
from octavo.server.text.template_capabilities import Capabilities
from octavo.server.text.template_child import FIELD, RENDER_SECONDS, Question, Reply
from octavo.server.text.traced import Traced
from octavo.server.text.turns import Turn

START_SECONDS = 60.0  # time for the process to import what it needs, which takes half a second on an idle machine
TOO_SLOW = f"{{param}} takes more than {RENDER_SECONDS:g} seconds to render; simplify it."
DIED = "The process that renders {param} died of it; simplify the template."
_START = "import sys; sys.path[:] = {path!r}; from octavo.server.text.template_child import main; main({descriptor})"


class TemplateProcess:
    """Asks the process, and starts another one when it has died. One thread may use it at a time."""

    def __init__(self, special_tokens: Mapping[str, str]) -> None:
        """`special_tokens` are those that templates know by name. The process starts with the first template."""
        self._special_tokens = special_tokens
        self._child: _Child | None = None
        self._is_given_up = False

    def ask(self, question: Question) -> Any:
        """Returns the process's answer. Raises ApiError, also when the process has not lived to answer."""
        child = self._started()
        try:
            reply = child.ask(question)
        except (TimeoutError, STANDS_STILL):
            self.restart()
            raise InvalidRequest(TOO_SLOW, FIELD) from None
        except (EOFError, OSError):
            self.restart()
            raise InvalidRequest(DIED, FIELD) from None
        if reply.exhausted:
            self.restart()
        if isinstance(reply.value, ApiError):
            raise reply.value
        return reply.value

    def give_up(self) -> None:
        """Kills the process for good, while a thread may wait for it. Any thread may call it."""
        self._is_given_up = True
        if (child := self._child) is not None:
            child.process.kill()

    def restart(self) -> None:
        """Kills the process, whatever it does, and starts another one, so that the next template need not wait."""
        self.close()
        if not self._is_given_up:
            self._child = _Child(self._special_tokens)

    def close(self) -> None:
        """Kills the process, if there is one."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()

    @property
    def pid(self) -> int | None:
        """Returns the id of the process, for tests and operators; None before the first template."""
        return None if self._child is None else self._child.pid

    def _started(self) -> "_Child":
        """Returns a process that is ready. Raises ServiceUnavailable."""
        if self._child is None or not self._child.is_alive():
            self.restart()
        try:
            if self._child is None:
                raise EOFError
            self._child.wait_until_ready()
        except (EOFError, OSError, TimeoutError):
            self.close()
            raise ServiceUnavailable("The process for templates of clients did not start; try again soon.") from None
        return self._child


class ClientTemplate:
    """A ClientTemplate is a template of a client, which a TemplateProcess renders."""

    def __init__(self, process: TemplateProcess, source: str) -> None:
        """Raises ApiError."""
        self._process = process
        self.source = source
        self.capabilities: Capabilities = process.ask(Question(source))

    def render(self, messages: Sequence[Turn], rendering: Rendering) -> Traced:
        """Returns the text of the prompt. Raises ApiError."""
        text: Traced = self._process.ask(Question(self.source, (messages, rendering)))
        return text


class _Child:
    """A _Child is the process as its parent sees it.

    It is no process of multiprocessing, because a daemon among those may have no children.
    """

    def __init__(self, special_tokens: Mapping[str, str]) -> None:
        self._connection, theirs = Pipe()
        bound_waits(self._connection, RENDER_SECONDS)
        descriptor = theirs.fileno()
        code = _START.format(path=sys.path, descriptor=descriptor)
        # In a session of its own, signals for the parent's process group do not reach it.
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.DEVNULL, pass_fds=[descriptor], start_new_session=True
        )
        theirs.close()  # Only the child has it now, so that its death is seen as end-of-file.
        self._special_tokens: Mapping[str, str] | None = special_tokens  # None: they are sent, and it is ready
        self.kill = weakref.finalize(self, _end, self.process, self._connection)

    @property
    def pid(self) -> int:
        return self.process.pid

    def is_alive(self) -> bool:
        return self.process.poll() is None

    def wait_until_ready(self) -> None:
        if self._special_tokens is not None:
            self._receive(START_SECONDS)
            self._connection.send(self._special_tokens)
            self._special_tokens = None

    def ask(self, question: Question) -> Reply:
        self._connection.send(question)
        return self._receive(RENDER_SECONDS)

    def _receive(self, seconds: float) -> Reply:
        if not self._connection.poll(seconds):
            raise TimeoutError
        reply = self._connection.recv()
        assert isinstance(reply, Reply)
        return reply


def _end(process: "subprocess.Popen[bytes]", connection: "Connection[Any, Any]") -> None:
    """Kills the process; it also ends by itself when the connection does, as that does with this process."""
    process.kill()
    process.wait()
    connection.close()
