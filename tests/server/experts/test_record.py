"""An ExpertRecord adds up exactly, forgets what is old, and keeps its total."""

from dataclasses import dataclass
from struct import pack

import numpy as np
import pytest

from octavo.engine.api import ExpertShape, ExpertUse
from octavo.server.experts.figures import chance_entropy, entropy
from octavo.server.experts.record import MAX_TOPICS, OTHER, ExpertRecord

SHAPE = ExpertShape(layers=(3,), experts=2, top_k=1, identical=False)


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


def use(tokens: int, topic: str = "") -> ExpertUse:
    return ExpertUse(topic, tokens, pack("<2q", tokens - 1, 1), pack("<q", tokens - 1))


def last(record: ExpertRecord) -> list[int]:
    return [tally.tokens for tally in record.snapshot(SHAPE).last_minutes.values()]


def test_use_grows_old() -> None:
    clock = Clock()
    record = ExpertRecord(clock)
    record.add(use(1))
    clock.now += 30
    record.add(use(10))
    assert last(record) == [11, 11]
    clock.now += 31
    assert last(record) == [10, 11]
    clock.now += 30
    assert last(record) == [0, 11]
    clock.now += 300
    record.add(use(100))
    assert last(record) == [100, 100]
    assert record.snapshot(SHAPE).use.tokens == 111


def test_what_is_kept_of_the_past_is_bounded() -> None:
    clock = Clock()
    record = ExpertRecord(clock)
    for _ in range(10_000):
        record.add(use(1))
        clock.now += 1
    assert len(record._recent) <= 61
    assert last(record)[1] == pytest.approx(300, abs=5)


def test_snapshots_do_not_change() -> None:
    record = ExpertRecord()
    record.add(use(5, "a"))
    snapshot = record.snapshot(SHAPE)
    record.add(use(7, "a"))
    record.reset()
    assert snapshot.use.tokens == snapshot.topics["a"].tokens == 5 and snapshot.use.counts.tolist() == [[4, 1]]


def test_a_label_from_before_a_reset_needs_room() -> None:
    record = ExpertRecord()
    record.label("old")
    record.reset()
    for number in range(MAX_TOPICS):
        record.label(str(number))
    record.add(use(3, "old"))
    record.add(use(4, "0"))
    topics = record.snapshot(SHAPE).topics
    assert {topic: tally.tokens for topic, tally in topics.items()} == {OTHER: 3, "0": 4}


def test_the_total_outlives_resets() -> None:
    record = ExpertRecord(now=lambda: 7.0)
    assert record.total(SHAPE).tokens == 0 and record.since == 7
    record.add(use(3))
    record.reset()
    record.add(use(4))
    total = record.total(SHAPE)
    assert total.tokens == 7 and total.counts.tolist() == [[5, 2]] and total.repeats.tolist() == [5]
    assert record.snapshot(SHAPE).use.tokens == 4


@pytest.mark.parametrize("tokens", [20, 100, 1000])
@pytest.mark.parametrize(("experts", "top_k"), [(8, 1), (8, 2), (64, 8)])
def test_chance_is_what_random_routers_come_to(experts: int, top_k: int, tokens: int) -> None:
    random = np.random.default_rng(0)
    found = []
    for _ in range(300):
        chosen = random.random((tokens, experts)).argpartition(top_k - 1, axis=1)[:, :top_k]
        found.append(entropy(np.bincount(chosen.ravel(), minlength=experts)))
    shape = ExpertShape((0,), experts, top_k, identical=False)
    lost = 1 - np.mean(np.array(found, float))
    assert 1 - (chance_entropy(shape, tokens) or 0) == pytest.approx(lost, rel=0.15)


def test_chance_of_next_to_nothing() -> None:
    shape = ExpertShape((0,), 64, 2, identical=False)
    assert chance_entropy(shape, 0) is None
    assert chance_entropy(shape, 1) == pytest.approx(1 / 6)  # two of 64: log 2 / log 64


@pytest.mark.parametrize(
    ("counts", "expected"), [([4, 4], 1.0), ([8, 0], 0.0), ([0, 0], None), ([5], None), ([3, 1], 0.8112781)]
)
def test_entropy(counts: list[int], expected: float | None) -> None:
    found = entropy(np.array(counts))
    assert found == (None if expected is None else pytest.approx(expected))
