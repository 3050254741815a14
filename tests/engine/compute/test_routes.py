"""Tests where routes are stored, that late rows harm nobody, and that counts are those of an obvious loop."""

from array import array
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.engine.api import ExpertUse, SamplingParams
from octavo.engine.compute.expert_use import Observer
from octavo.engine.compute.routes import Places, RouteStore
from octavo.engine.schedule.batch import Row
from octavo.model.config import ModelConfig
from octavo.model.routes import Routes, Routing, id_type
from octavo.model.weights.memory import zeros_on
from tests.tiny import TINY_CONFIG

LAYERS, TOP_K, EXPERTS, SIZE = 3, 2, 5, 4


def config_of(**changes: Any) -> ModelConfig:
    sizes = {"num_hidden_layers": LAYERS, "num_experts": EXPERTS, "num_experts_per_tok": TOP_K}
    return replace(TINY_CONFIG, **{**sizes, **changes})


def row(name: str, start: int, count: int, blocks: list[int], **changes: Any) -> Row:
    """Returns a row of so many tokens, whose routes are told from its sequence's first position on."""
    params = SamplingParams(9, topic=str(changes.pop("topic", "")))
    return Row(name, start, (7,) * count, array("i", blocks), params, None, **{"routes_from": 0, **changes})


def store(num_blocks: int = 20) -> RouteStore:
    return RouteStore(
        np.full((num_blocks * SIZE, LAYERS, TOP_K), 255, np.uint8),
        np.full((num_blocks * SIZE, LAYERS, TOP_K), np.nan, np.float16),
        SIZE,
    )


def routes(count: int, seed: int = 0) -> Routes:
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(count, LAYERS, EXPERTS, generator=generator).argsort(-1)[..., :TOP_K]
    return Routes(order.to(torch.uint8), torch.rand(count, LAYERS, TOP_K, generator=generator).half())


ROWS = st.lists(st.tuples(st.integers(0, 13), st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=5)


@settings(derandomize=True, deadline=None)
@given(ROWS)
def test_places_are_those_of_an_obvious_loop(shapes: list[tuple[int, int, int]]) -> None:
    generator = np.random.default_rng(len(shapes))
    rows, firsts = [], []
    for start, count, before in shapes:
        blocks = generator.integers(0, 50, -(-(start + count) // SIZE)).tolist()
        rows.append(row("a", start, count, blocks))
        firsts.append(max(0, start - before))
    places = Places.of(rows, firsts, SIZE)
    wanted = [
        (index, position, each.blocks[position // SIZE] * SIZE + position % SIZE)
        for index, (each, first) in enumerate(zip(rows, firsts, strict=True))
        for position in range(first, each.end)
    ]
    found = zip(places.owners.tolist(), places.positions.tolist(), places.slots.tolist(), strict=True)
    assert list(found) == wanted


def test_what_is_told_is_what_was_stored_chunk_by_chunk() -> None:
    observer, found = Observer(store(), EXPERTS), routes(11)
    told = []
    for start, end in ((0, 6), (6, 10), (10, 11)):
        part = Routes(found.ids[start:end], found.weights[start:end])
        told += observer.observe([row("a", start, end - start, [9, 3, 7], routes_from=start)], part, [True])
    rows = [row("a", 10, 1, [9, 3, 7], routes_from=first) for first in (None, 2, 11, 10)]
    none, whole, nothing, last = observer.store.told(rows)
    assert none is None and nothing is None and last is not None and (last.start, last.count) == (10, 1)
    assert last.ids == found.ids[10:].numpy().astype("<i4").tobytes()
    assert whole is not None and (whole.start, whole.count) == (2, 9)
    assert whole.ids == found.ids[2:].numpy().astype("<i4").tobytes()
    assert whole.weights == found.weights[2:].numpy().astype("<f4").tobytes()
    assert b"".join(each.ids for each in told) == found.ids.numpy().astype("<i4").tobytes()
    assert observer.store.told(rows[:1]) == [None]


def test_a_late_row_does_not_write_over_the_next_owner_of_its_block() -> None:
    """Row `a` was launched before its sequence ended, and `b` behind it, on the same block: they are collected so."""
    observer, late, new = Observer(store(), EXPERTS), routes(2, seed=1), routes(2, seed=2)
    observer.observe([row("a", 0, 2, [4])], late, [True])
    (told,) = observer.observe([row("b", 0, 2, [4])], new, [True])
    assert told is not None and told.ids == new.ids.numpy().astype("<i4").tobytes()


def test_rows_that_are_not_finite_are_neither_told_nor_counted() -> None:
    observer, found = Observer(store(), EXPERTS), routes(5)
    told = observer.observe([row("a", 0, 2, [1]), row("b", 0, 3, [2])], found, [False, True])
    assert told[0] is None and told[1] is not None
    assert told[1].ids == found.ids[2:].numpy().astype("<i4").tobytes()
    (use,) = observer.report()
    assert use.tokens == 3


@pytest.mark.parametrize("cut", [(0, 12), (0, 1, 2, 5, 12), (0, 4, 8, 12), tuple(range(13))])
def test_counts_are_those_of_an_obvious_loop(cut: tuple[int, ...]) -> None:
    """Two sequences run side by side; the first two positions of one are not new."""
    observer, one, other = Observer(store(), EXPERTS), routes(12, seed=3), routes(12, seed=4)
    for start, end in zip(cut, cut[1:], strict=False):
        rows = [
            row("a", start, end - start, [5, 1, 8], topic="law", first_new=max(start, 2)),
            row("b", start, end - start, [6, 2, 9], topic="code", first_new=start),
        ]
        parts = [torch.cat([getattr(each, name)[start:end] for each in (one, other)]) for name in ("ids", "weights")]
        observer.observe(rows, Routes(*parts), [True, True])
    found = {use.topic: use for use in observer.report()}
    assert found == {"law": counted("law", one, 2), "code": counted("code", other, 0)}
    assert observer.report() == ()


def counted(topic: str, found: Routes, first: int) -> ExpertUse:
    ids = found.ids.tolist()
    new = ids[first:]
    counts = [Counter(expert for token in new for expert in token[layer]) for layer in range(LAYERS)]
    repeats = [
        sum(ids[position][layer][0] == ids[position - 1][layer][0] for position in range(max(first, 1), len(ids)))
        for layer in range(LAYERS)
    ]
    table = array("q", [counts[layer][expert] for layer in range(LAYERS) for expert in range(EXPERTS)])
    return ExpertUse(topic, len(new), table.tobytes(), array("q", repeats).tobytes())


def test_rows_of_one_topic_are_counted_together() -> None:
    observer = Observer(store(), EXPERTS)
    topics = ("law", "code", "law")
    rows = [row(f"{index}", 0, 1, [index], topic=topic) for index, topic in enumerate(topics)]
    observer.observe(rows, routes(3), [True] * 3)
    assert [(use.topic, use.tokens) for use in observer.report()] == [("law", 2), ("code", 1)]


@pytest.mark.parametrize(("experts", "id_bytes"), [(8, 1), (256, 1), (257, 2)])
def test_the_bytes_of_a_store_are_known_before_it_is_made(experts: int, id_bytes: int) -> None:
    config = config_of(num_experts=experts)
    made = RouteStore.of(config, 6, SIZE, zeros_on(torch.device("cpu")))
    assert made is not None and made.ids.shape == made.weights.shape == (6 * SIZE, LAYERS, TOP_K)
    assert (made.ids.itemsize, made.weights.dtype) == (id_bytes, np.float16)
    assert RouteStore.bytes_per_token(config) * 6 * SIZE == made.ids.nbytes + made.weights.nbytes
    taken = RouteStore.bytes_taken(config, 6, SIZE)
    assert made.ids.nbytes + made.weights.nbytes <= taken <= made.ids.nbytes + made.weights.nbytes + 126


def test_a_dense_model_has_no_store() -> None:
    config = config_of(dense=True, num_experts=1, num_experts_per_tok=1)
    assert RouteStore.of(config, 6, SIZE, zeros_on(torch.device("cpu"))) is None
    assert RouteStore.bytes_taken(config, 6, SIZE) == RouteStore.bytes_per_token(config) == 0


def test_routing_joins_what_routers_tell_one_by_one_or_together() -> None:
    ids, weights = torch.arange(24).view(3, 4, 2), torch.rand(3, 4, 2)
    routing = Routing(torch.rand(3, 4, 30))
    assert routing.addends is not None
    for layer in range(3):
        addend = routing.addend()
        assert addend is not None and addend.equal(routing.addends[layer])
        routing.tell(ids[layer], weights[layer])
    together = Routing()
    assert together.addend() is None and together.routes(30) is None
    together.tell_all(ids, weights)
    for found in (routing.routes(30), together.routes(30)):
        assert found is not None and found.ids.dtype == torch.uint8
        assert found.ids.tolist() == ids.transpose(0, 1).tolist()
        assert found.weights.equal(weights.transpose(0, 1).half())


@pytest.mark.parametrize("experts", [1, 256, 257, 1000])
def test_the_type_of_ids_holds_the_last_one(experts: int) -> None:
    assert torch.tensor(experts - 1).to(id_type(experts)).item() == experts - 1
