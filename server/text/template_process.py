"""Renders templates of clients in a process of their own, which is killed when one takes too much time or memory."""

from collections.abc import Mapping, Sequence
from typing import Any

from octavo.engine.child import Child, Died, NotStarted, TooSlow
from octavo.server.http.errors import ApiError, InvalidRequest, ServiceUnavailable
from octavo.server.text.template import Rendering
from octavo.server.text.template_capabilities import Capabilities
from octavo.server.text.template_child import FIELD, RENDER_SECONDS, Question, Reply, answers
from octavo.server.text.traced import Traced
from octavo.server.text.turns import Turn

TOO_SLOW = f"{{param}} takes more than {RENDER_SECONDS:g} seconds to render; simplify it."
DIED = "The process that renders {param} died of it; simplify the template."


class TemplateProcess:
    """Asks the process, and starts another one when it has died. One thread may use it at a time."""

    def __init__(self, special_tokens: Mapping[str, str]) -> None:
        """`special_tokens` are those that templates know by name. The process starts with the first template."""
        self._special_tokens = special_tokens
        self._child: Child | None = None
        self._is_given_up = False

    def ask(self, question: Question) -> Any:
        """Returns the process's answer. Raises ApiError, also when the process has not lived to answer."""
        if self._child is None or not self._child.is_alive():  # Somebody may have killed it while it was idle.
            self.restart()
        reply = self._asked(question)
        if reply.exhausted:
            self.restart()
        if isinstance(reply.value, ApiError):
            raise reply.value
        return reply.value

    def _asked(self, question: Question) -> Reply:
        try:
            if self._child is None:
                raise NotStarted
            reply: Reply = self._child.ask(question, RENDER_SECONDS)
            return reply
        except NotStarted:
            self.close()
            raise ServiceUnavailable("The process for templates of clients did not start; try again soon.") from None
        except TooSlow:
            self.restart()
            raise InvalidRequest(TOO_SLOW, FIELD) from None
        except Died:
            self.restart()
            raise InvalidRequest(DIED, FIELD) from None

    def give_up(self) -> None:
        """Kills the process for good, while a thread may wait for it. Any thread may call it."""
        self._is_given_up = True
        if (child := self._child) is not None:
            child.kill()

    def restart(self) -> None:
        """Kills the process, whatever it does, and starts another one, so that the next template need not wait."""
        self.close()
        if not self._is_given_up:
            self._child = Child(answers, self._special_tokens)

    def close(self) -> None:
        """Kills the process, if there is one."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()

    @property
    def pid(self) -> int | None:
        """Returns the id of the process, for tests and operators; None before the first template."""
        return None if self._child is None else self._child.pid


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
