"""Tests that looking prompts up in the prefix cache costs a step little, and still finds all there is to find."""

from unittest.mock import patch

import pytest

from octavo.engine.schedule import prefix, sequence
from octavo.engine.schedule.blocks import chain_hash
from tests.engine.fakes import Collector, check, continuation, engine, request, run

LONG = [7] * 400  # a hundred blocks of four tokens


class Hashes:
    """Counts the blocks that are hashed."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, parent, tokens):
        self.count += 1
        return chain_hash(parent, tokens)

    def during(self, call):
        """Returns how many blocks a call hashes."""
        before = self.count
        call()
        return self.count - before


@pytest.fixture
def hashes():
    counter = Hashes()
    with patch.object(sequence, "chain_hash", counter):
        yield counter


def large(**changes):
    return engine(**{"num_blocks": 1000, "max_model_len": 1000, **changes})


def test_nothing_is_hashed_when_requests_come(hashes):
    core = large()
    assert hashes.during(lambda: [core.add(request(f"r{n}", [n, *LONG])) for n in range(50)]) == 0


def test_what_waits_for_room_is_not_hashed_on(hashes):
    """The first misses at its first block and does not fit; those behind it are not even looked at."""
    core = engine(num_blocks=30, max_num_batched_tokens=8)
    core.add(request("a", range(80), 20))
    core.step()
    for n in range(50):
        core.add(request(f"r{n}", [n, *range(99)], 4))
    core.step()
    assert hashes.during(core.step) <= 8 // 4 + 1  # what is published, and one block that others could wait for
    assert [len(seq.hashes) for seq in core.scheduler.waiting] == [1, *[0] * 49]


def test_nothing_is_hashed_without_a_prefix_cache(hashes):
    core, collector = large(enable_prefix_caching=False), Collector()
    for name in "ab":
        core.add(request(name, LONG, 2))
    run(core, collector)
    assert hashes.count == 0


def test_those_that_wait_for_a_prompt_hash_nothing_meanwhile(hashes):
    core = large()
    for n in range(8):
        core.add(request(f"r{n}", [*LONG, n], 2))
    core.step()
    assert [seq.awaits is core.scheduler.running[0] for seq in core.scheduler.waiting] == [True] * 7
    for _ in range(11):
        assert hashes.during(core.step) <= 32 // 4 + 1
    assert len(core.scheduler.waiting) == 7


def test_while_others_run_a_step_hashes_so_much_and_no_more(hashes):
    """The prefix is cached, so a look-up goes to its end: it takes several steps, and short prompts pass meanwhile."""
    core, collector = large(max_num_seqs=20), Collector()
    core.add(request("first", LONG, 1))
    run(core, collector)
    core.add(request("stream", [1], 60))
    core.step()
    for n in range(4):
        core.add(request(f"long{n}", [*LONG, n], 2))
    core.add(request("short", [2] * 9, 2))
    with patch.object(prefix, "HASHED_AT_ONCE", 40), patch.object(prefix, "KEPT_FOR_SHORT", 150):

        def step() -> None:
            for output in core.step().outputs:
                collector.take(output)

        spent = [hashes.during(step)]
        assert "short" in dict(core.runner.steps[-1]) and "long0" not in dict(core.runner.steps[-1])
        while core.scheduler.waiting:
            spent.append(hashes.during(step))
            check(core)
    assert max(spent) <= 40 + 150 + prefix.STRETCH
    run(core, collector)
    for n in range(4):
        assert collector.ended[f"long{n}"].cached_tokens == 400
        assert collector.tokens[f"long{n}"] == continuation([*LONG, n], 2)


def test_nobody_waits_for_the_hashing_if_nobody_runs():
    core, collector = large(), Collector()
    core.add(request("first", LONG, 1))
    run(core, collector)
    core.add(request("again", [*LONG, 1], 1))
    with patch.object(prefix, "HASHED_AT_ONCE", 1):
        core.step()
    assert core.runner.steps[-1] == [("again", 1)]


def test_a_prompt_that_waits_goes_on_where_the_other_one_differs():
    """It waits for what both have in common, not for the rest of the other one's prompt."""
    core = large()
    core.add(request("a", LONG, 2))
    core.add(request("b", [*LONG[:64], *range(40)], 2))
    for _ in range(3):
        core.step()
    assert dict(core.runner.steps[-2]).keys() == {"a"}  # both steps that compute the common blocks
    assert dict(core.runner.steps[-1])["b"] > 0
    collector = Collector()
    run(core, collector)
    assert collector.ended["b"].cached_tokens == 64


def test_blocks_evicted_while_a_prompt_waits_for_room_are_computed_again():
    core, collector = engine(num_blocks=12, max_num_batched_tokens=64), Collector()
    core.add(request("first", range(16), 1))
    run(core, collector)
    core.add(request("busy", [5] * 20, 20))
    core.step()
    core.add(request("waits", [*range(16), *range(100, 120)], 2))
    core.step()
    assert core.scheduler.waiting[0].found == 4
    run(core, collector)
    assert collector.tokens["waits"] == continuation([*range(16), *range(100, 120)], 2)
    assert collector.ended["waits"].cached_tokens < 16


def test_a_flood_of_equal_prompts_costs_a_step_so_much_and_no_more(hashes):
    """Each misses at its first block. Those whose turn does not come are looked up in later steps."""
    core = large(max_num_seqs=300)
    core.add(request("stream", [1], 60))
    core.step()
    for n in range(200):
        core.add(request(f"r{n}", [*LONG, n], 2))
    with patch.object(prefix, "HASHED_AT_ONCE", 10), patch.object(prefix, "KEPT_FOR_SHORT", 40):
        assert 50 <= hashes.during(core.step) <= 60
        assert sum(seq.awaits is not None for seq in core.scheduler.waiting) == 49
        assert hashes.during(core.step) <= 70


def test_short_prompts_have_hashing_of_their_own(hashes):
    """Their prefix is cached, too, so one hash does not do."""
    core, collector = large(max_num_seqs=20), Collector()
    for name, text in (("first", LONG), ("second", [3] * 40)):
        core.add(request(name, text, 1))
        run(core, collector)
    core.add(request("stream", [1], 60))
    core.step()
    for n in range(10):
        core.add(request(f"long{n}", [*LONG, n], 2))
    core.add(request("short", [3] * 50, 2))
    with patch.object(prefix, "HASHED_AT_ONCE", 8):
        core.step()
    assert dict(core.runner.steps[-1])["short"] == 10
