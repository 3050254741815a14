"""Counts how much each expert is used, by the topics of the requests, and how often the same expert comes again."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from octavo.engine.api import ExpertUse, Routes
from octavo.engine.compute.routes import Places, RouteStore
from octavo.engine.schedule.batch import Row
from octavo.model import routes


@dataclass(slots=True)
class Counts:
    """Counts are those of one topic."""

    experts: NDArray[np.int64]  # [L, E]
    repeats: NDArray[np.int64]  # [L]
    tokens: int = 0

    def told(self, topic: str) -> ExpertUse:
        """Returns them as plain data."""
        return ExpertUse(topic, self.tokens, self.experts.astype("<i8").tobytes(), self.repeats.astype("<i8").tobytes())


class Observer:
    """An Observer sees the routes of each step: it stores them, counts them, and tells them to those who ask."""

    def __init__(self, store: RouteStore, experts: int) -> None:
        """Observes routers that choose from so many experts each."""
        self.store = store
        self._experts = experts
        self._topics: dict[str, Counts] = {}  # since the last report

    def observe(self, rows: Sequence[Row], found: routes.Routes, finite: Sequence[bool]) -> list[Routes | None]:
        """Takes the routes of the tokens of all rows, which are on the host, and whether each row's states are finite.

        Returns for each row what it tells of its sequence. Rows that are not finite are neither told nor counted.
        """
        # The token before a row says whether the row's first token repeats its expert.
        places = Places.of(rows, [max(row.start - 1, 0) for row in rows], self.store.block_size)
        starts = np.array([row.start for row in rows])  # [N]
        own = places.positions >= starts[places.owners]  # [M]
        self.store.put(places.slots[own], found)
        self._count(rows, places, finite)
        told = self.store.told(rows)
        return [each if good else None for each, good in zip(told, finite, strict=True)]

    def _count(self, rows: Sequence[Row], places: Places, finite: Sequence[bool]) -> None:
        """Counts the tokens that are computed for the first time. Their routes are stored already."""
        ids = self.store.ids[places.slots]  # [M, L, k]
        news = np.array([row.first_new if good else row.end for row, good in zip(rows, finite, strict=True)])  # [N]
        is_new = places.positions >= news[places.owners]  # [M]
        repeats = np.zeros(ids.shape[:2], bool)  # [M, L]
        is_next = (places.owners[1:] == places.owners[:-1])[:, None]
        np.logical_and(ids[1:, :, 0] == ids[:-1, :, 0], is_next, out=repeats[1:])
        topics = [row.params.topic for row in rows]
        for topic in dict.fromkeys(topics):
            chosen = is_new
            if topics.count(topic) < len(rows):
                chosen = is_new & np.array([each == topic for each in topics])[places.owners]
            if chosen.any():
                self._add(topic, ids[chosen], repeats[chosen])

    def _add(self, topic: str, ids: NDArray[np.integer], repeats: NDArray[np.bool_]) -> None:
        """Adds tokens with ids [n, L, k], and whether each repeats its first expert [n, L]."""
        tokens, layers, _ = ids.shape
        counts = self._topics.get(topic)
        if counts is None:
            shape = layers, self._experts
            counts = self._topics[topic] = Counts(np.zeros(shape, np.int64), np.zeros(layers, np.int64))
        cells = ids + self._experts * np.arange(layers)[:, None]  # [n, L, k]
        counts.experts += np.bincount(cells.ravel(), minlength=counts.experts.size).reshape(counts.experts.shape)
        counts.repeats += repeats.sum(0)
        counts.tokens += tokens

    def report(self) -> tuple[ExpertUse, ...]:
        """Returns the counts of each topic since the last report."""
        told = tuple(counts.told(topic) for topic, counts in self._topics.items())
        self._topics = {}
        return told
