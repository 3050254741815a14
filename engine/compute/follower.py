"""Follower is where one output stands in its grammar. It bounds the time that the output may take of the others'."""

from collections.abc import Iterator
from contextlib import contextmanager
from time import thread_time
from typing import TYPE_CHECKING

from octavo.engine.compute.compiler import GrammarError, mask_of, why_refused

if TYPE_CHECKING:
    from llguidance import LLMatcher

# An output may spend so many seconds of a processor on its masks at once. Each token gives back some of them.
ALLOWANCE = 0.25
SECONDS_PER_TOKEN = 0.01  # a hundred times what a usual schema takes
TOO_SLOW = "The grammar takes too much time to be followed; simplify it."


class Follower:
    """A Follower belongs to one thread at a time."""

    def __init__(self, matcher: "LLMatcher") -> None:
        """`matcher` is at its beginning, and is copied."""
        self._matcher = matcher.deep_copy()
        self._left = ALLOWANCE

    def mask(self) -> bytes:
        """Returns which tokens may come next: a bit for each id, least significant first. Raises GrammarError."""
        with self._timed():
            mask = mask_of(self._matcher)
        if self._left < 0:
            raise GrammarError(TOO_SLOW)
        self._left = min(self._left + SECONDS_PER_TOKEN, ALLOWANCE)
        return mask

    def take(self, token: int) -> bool:
        """Takes in a token; returns whether the grammar is fulfilled, and nothing may follow. Raises GrammarError."""
        with self._timed():
            taken = self._matcher.consume_token(token)
        if not taken:
            raise GrammarError(why_refused(self._matcher))
        return self._matcher.is_stopped()

    @contextmanager
    def _timed(self) -> Iterator[None]:
        """Counts the time of this thread alone: a busy machine makes no grammar slow."""
        started = thread_time()
        try:
            yield
        finally:
            self._left -= thread_time() - started
