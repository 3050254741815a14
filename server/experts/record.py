"""Adds up what the engine tells of the use of experts: in all, by topic, and over the last minutes."""

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from octavo.engine.api import ExpertShape, ExpertUse

MAX_TOPICS = 64  # Each takes room for a count of every expert.
MAX_TOPIC_LENGTH = 64  # characters
UNNAMED, OTHER = "", "other"  # the labels of requests without a topic, and of those whose topic has no room
MINUTES = (1, 5)  # the stretches of time before now that are told
_STEP = 5.0  # seconds of use that are kept together; so far are the stretches from exact


@dataclass(frozen=True, slots=True)
class Tally:
    """A Tally counts the tokens of some requests, and which experts served them."""

    tokens: int
    counts: NDArray[np.int64]  # how many of the tokens each expert served [L, E]
    repeats: NDArray[np.int64]  # tokens whose first expert is also that of the token before [L]

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(self.tokens + other.tokens, self.counts + other.counts, self.repeats + other.repeats)


def nothing(shape: ExpertShape) -> Tally:
    """Returns the tally of no tokens."""
    layers = len(shape.layers)
    return Tally(0, np.zeros((layers, shape.experts), np.int64), np.zeros(layers, np.int64))


def _tally(use: ExpertUse) -> Tally:
    repeats = np.frombuffer(use.repeats, "<i8").astype(np.int64)  # [L]
    counts = np.frombuffer(use.counts, "<i8").astype(np.int64).reshape(len(repeats), -1)  # [L, E]
    return Tally(use.tokens, counts, repeats)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A Snapshot is what was counted up to a moment. Nothing changes it afterwards."""

    since: float  # when the counting began, in seconds since 1970
    use: Tally
    last_minutes: Mapping[int, Tally]  # a number of minutes -> the use in them
    topics: Mapping[str, Tally]  # a label -> the use of its requests


class ExpertRecord:
    """An ExpertRecord adds up what every engine of one server tells: it goes on when an engine is started again.

    It is used on one event loop. Tallies are never changed, only replaced, so that snapshots may go elsewhere.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, now: Callable[[], float] = time.time) -> None:
        """`clock` gives seconds that never jump, and `now` seconds since 1970."""
        self._clock, self._now = clock, now
        self._total: Tally | None = None  # since the server's start
        self.reset()

    def reset(self) -> None:
        """Begins to count anew. The total goes on, since it is that of counters that must never fall."""
        self._since = self._now()
        self._topics: dict[str, Tally] = {}
        self._labels: set[str] = set()  # the topics that have room
        self._recent: deque[tuple[float, Tally]] = deque()  # (when it began, the use of _STEP seconds), oldest first

    def label(self, topic: str) -> str:
        """Returns the label under which a topic is counted: its own as long as there is room for it."""
        if topic in (UNNAMED, OTHER) or topic in self._labels:
            return topic
        if len(topic) > MAX_TOPIC_LENGTH or len(self._labels) >= MAX_TOPICS:
            return OTHER
        self._labels.add(topic)
        return topic

    def add(self, use: ExpertUse) -> None:
        """Counts what an engine tells. A label from before a reset needs room anew."""
        tally, label = _tally(use), self.label(use.topic)
        self._total = _sum(self._total, tally)
        self._topics[label] = _sum(self._topics.get(label), tally)
        self._add_recent(tally)

    def _add_recent(self, tally: Tally) -> None:
        now = self._clock()
        while self._recent and self._recent[0][0] <= now - 60 * max(MINUTES):
            self._recent.popleft()
        if self._recent and now < self._recent[-1][0] + _STEP:
            began, before = self._recent.pop()
            self._recent.append((began, before + tally))
        else:
            self._recent.append((now, tally))

    def total(self, shape: ExpertShape) -> Tally:
        """Returns what was counted since the server's start, whatever was reset."""
        return _sum(self._total, nothing(shape))

    def snapshot(self, shape: ExpertShape) -> Snapshot:
        """Returns what was counted since the last reset."""
        use = sum(self._topics.values(), nothing(shape))
        return Snapshot(self._since, use, {each: self._last(each, shape) for each in MINUTES}, dict(self._topics))

    def _last(self, minutes: int, shape: ExpertShape) -> Tally:
        since = self._clock() - 60 * minutes
        return sum((tally for began, tally in self._recent if began > since), nothing(shape))

    @property
    def since(self) -> float:
        """Returns when the counting began, in seconds since 1970."""
        return self._since


def _sum(first: Tally | None, second: Tally) -> Tally:
    return second if first is None else first + second
