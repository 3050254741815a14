"""EngineClient is what the API process knows of an engine: its state, how to submit requests, and what it refuses.

Refused
├── TooLong        the requests can never fit
├── UnknownToken   a prompt has a token that the model does not have
├── QueueFull      too many requests are waiting
├── BadGrammar     the grammar cannot be used
└── Unavailable    the engine is not ready
"""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from octavo.engine.api import EngineStats, ExpertUse, Grammar, Output, Progress, Ready, Request


class Refused(Exception):
    """Says that a request was not accepted and nothing was queued. The message is for the client."""


class TooLong(Refused):
    """Says that the request can never fit, now or later."""


class UnknownToken(Refused):
    """Says that a prompt has a token id for which the model has no embedding: its tokenizer may have more tokens."""


class QueueFull(Refused):
    """Says that too many requests are waiting; the client may try again later."""


class BadGrammar(Refused):
    """Says that outputs cannot be held to the grammar."""


class Unavailable(Refused):
    """Says that the engine is loading, restarting or going away."""


@dataclass(frozen=True, slots=True)
class Loading:
    """Says that the engine is starting, for the first time or again."""

    progress: Progress | None = None
    error: str | None = None  # why it is started again, a clause; None: this is the first start


@dataclass(frozen=True, slots=True)
class Draining:
    """Says that open requests are finishing and no new ones are taken."""


@dataclass(frozen=True, slots=True)
class Failed:
    """Says that the engine will not come back and the server is about to exit."""

    error: str


EngineState = Loading | Ready | Draining | Failed


class Generation(Protocol):
    """Yields the outputs of requests that were submitted together as they arrive, up to the last terminal one."""

    def __aiter__(self) -> AsyncIterator[Output]: ...

    def abort(self, request_id: str) -> None:
        """Stops one of the requests; no further output of it is delivered."""

    def close(self) -> None:
        """Aborts whatever has not ended. It never waits and may be called again, so it belongs in a `finally`."""


class EngineClient(Protocol):
    """An EngineClient offers what the endpoints need of an engine. Tests put a fake one in its place."""

    @property
    def state(self) -> EngineState: ...

    @property
    def stats(self) -> EngineStats: ...

    @property
    def ready(self) -> Ready | None:
        """Returns the bounds of the engine; None until it was ready for the first time. They outlive a restart."""

    def on_expert_use(self, receive: Callable[[ExpertUse], None]) -> None:
        """Calls `receive` with whatever engines tell of the use of experts from now on."""

    async def check(self, grammar: Grammar, caller: str = "") -> None:
        """Tries a grammar, as must be done before it is submitted. Any grammar gets its answer within seconds.

        Callers take turns; a caller is an opaque name.

        Raises BadGrammar, QueueFull or Unavailable.
        """

    def check_room(self, wanted: int) -> None:
        """Raises QueueFull or Unavailable if `submit` would refuse so many requests now, whatever they ask for."""

    def submit(self, requests: Sequence[Request]) -> Generation:
        """Accepts all of the requests or none.

        Raises TooLong, UnknownToken, QueueFull or Unavailable at once, before anything is sent.
        """


class ManagedEngine(EngineClient, Protocol):
    """A ManagedEngine adds to EngineClient what the owner of an engine does: start it, wait for its end, stop it."""

    @property
    def open_requests(self) -> int:
        """Returns how many requests were accepted and have not ended."""

    def start(self) -> None:
        """Starts the engine and keeps one running until `stop`; returns at once."""

    async def given_up(self) -> None:
        """Returns when the engine will not be started again and the state is Failed, or after `stop`."""

    async def drain(self, timeout: float) -> None:
        """Takes no new requests; returns when the open ones have ended, after `timeout` seconds by an error."""

    async def stop(self) -> None:
        """Ends the engine, whatever it is doing, and with it every open request."""


def why_unavailable(state: Loading | Draining | Failed) -> str:
    """Returns the sentence for a client that asks while the engine is not ready."""
    match state:
        case Loading(progress, None):
            return f"The model is loading{_described(progress)}; try again soon."
        case Loading(progress, error):
            return f"The engine stopped ({error}) and is being restarted{_described(progress)}; try again soon."
        case Draining():
            return "The server is shutting down; it finishes open requests and takes no new ones."
        case Failed(error):
            return f"The engine failed ({error}); the server is about to exit."


def _described(progress: Progress | None) -> str:
    if progress is None:
        return ""
    share = f" ({100 * progress.done // progress.total} %)" if progress.total else ""
    return f": {progress.what}, {progress.done} of {progress.total}{share}"
