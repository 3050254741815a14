"""How the API process talks to an engine: the EngineClient protocol, what it may refuse, and ProcessClient."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from engine.api import EngineStats, Output, Progress, Ready, Request


class Refused(Exception):
    """A request was not accepted; nothing was queued. The message is for the client."""


class TooLong(Refused):
    """The request can never fit, now or later."""


class QueueFull(Refused):
    """Too many requests are waiting; try again later."""


class Unavailable(Refused):
    """The engine is loading, restarting or going away."""


@dataclass(frozen=True, slots=True)
class Loading:
    """The engine is starting, for the first time or again."""

    progress: Progress | None = None
    error: str | None = None  # why it is being started again


@dataclass(frozen=True, slots=True)
class Draining:
    """Open requests are finishing; no new ones are taken."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The engine will not come back; the server is about to exit."""

    error: str


EngineState = Loading | Ready | Draining | Failed


class Generation(Protocol):
    """The outputs of the requests that were submitted together, as they arrive; ends after the last terminal one."""

    def __aiter__(self) -> AsyncIterator[Output]: ...

    def abort(self, request_id: str) -> None:
        """Stops one of the requests; no further output of it is delivered."""

    def close(self) -> None:
        """Aborts whatever has not ended. Synchronous and idempotent: it belongs in a `finally`."""


class EngineClient(Protocol):
    """What the server needs of an engine; tests put a fake one here."""

    @property
    def state(self) -> EngineState: ...

    @property
    def stats(self) -> EngineStats: ...

    @property
    def ready(self) -> Ready | None:
        """The bounds of the engine, from the first time it was ready; they outlive a restart."""

    def submit(self, requests: Sequence[Request]) -> Generation:
        """Accepts all of the requests or none.

        Raises TooLong, QueueFull or Unavailable at once, before anything is sent.
        """
