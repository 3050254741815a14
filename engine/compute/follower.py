"""Follower is where one output stands in its grammar. It bounds the time that the output may take of the others'."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from time import thread_time
from typing import TYPE_CHECKING

from octavo.engine.compute.compiler import GrammarError, mask_of, why_refused

if TYPE_CHECKING:
    from llguidance import LLMatcher

# An output may spend so many seconds of a processor on its masks at once. Each token gives back some of them.
ALLOWANCE = 0.25
SECONDS_PER_TOKEN = 0.01  # a hundred times what a usual schema takes
TOO_SLOW = "The grammar takes too much time to be followed; simplify it."


class Compiled:
    """A Compiled is a grammar that many outputs follow.

    The copies of a matcher share its lexer, which grows with all that they read. Once it reaches a limit, it is of no
    use to any of them, and is made anew.
    """

    def __init__(self, make: "Callable[[], LLMatcher]") -> None:
        """`make` compiles the grammar. Raises what it raises."""
        self._make = make
        self._lock = Lock()
        self.matcher = make()  # at its beginning

    def renewed(self, failed: "LLMatcher") -> "LLMatcher":
        """Returns a matcher that is not the one that failed."""
        with self._lock:
            if self.matcher is failed:
                self.matcher = self._make()
            return self.matcher


class Follower:
    """A Follower belongs to one thread at a time."""

    def __init__(self, compiled: Compiled) -> None:
        self._compiled = compiled
        self._origin = compiled.matcher
        self._matcher = self._origin.deep_copy()
        self._tokens: list[int] = []
        self._renewals = 0  # since the last token
        self._left = ALLOWANCE

    def mask(self) -> bytes:
        """Returns which tokens may come next: a bit for each id, least significant first. Raises GrammarError."""
        with self._timed():
            mask = self._computed_mask()
        if self._left < 0:
            raise GrammarError(TOO_SLOW)
        self._left = min(self._left + SECONDS_PER_TOKEN, ALLOWANCE)
        return mask

    def _computed_mask(self) -> bytes:
        while True:
            try:
                return mask_of(self._matcher)
            except GrammarError:
                if not self._renew():
                    raise

    def take(self, token: int) -> bool:
        """Takes in a token; returns whether the grammar is fulfilled, and nothing may follow. Raises GrammarError."""
        with self._timed():
            while not self._matcher.consume_token(token):
                if not self._renew():
                    raise GrammarError(why_refused(self._matcher))
        self._tokens.append(token)
        self._renewals = 0
        return self._matcher.is_stopped()

    def _renew(self) -> bool:
        """Comes to the same place with another lexer; returns whether there is one to try.

        The first that it tries may be one that others have exhausted meanwhile. The second is new.
        """
        if self._renewals == 2:
            return False
        self._renewals += 1
        self._origin = self._compiled.renewed(self._origin)
        self._matcher = self._origin.deep_copy()
        self._matcher.try_consume_tokens(self._tokens)
        return True

    @contextmanager
    def _timed(self) -> Iterator[None]:
        """Counts the time of this thread alone: a busy machine makes no grammar slow."""
        started = thread_time()
        try:
            yield
        finally:
            self._left -= thread_time() - started
