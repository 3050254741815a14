"""Tests BlockPool by examples of each promise, then by random operations, and checks every invariant after each."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from octavo.engine.schedule.blocks import BlockPool, chain_hash, root_hash

CHAIN = [root_hash("")]
for tokens in ([1, 2], [3, 4], [5, 6], [7, 8]):
    CHAIN.append(chain_hash(CHAIN[-1], tokens))
FIRST, SECOND, THIRD, FOURTH = CHAIN[1:]


def test_a_hash_names_the_whole_prefix_and_the_salt():
    assert chain_hash(root_hash("a"), [1, 2]) == chain_hash(root_hash("a"), (1, 2))
    others = [
        chain_hash(root_hash("b"), [1, 2]),
        chain_hash(root_hash("a"), [2, 1]),
        chain_hash(chain_hash(root_hash("a"), [1, 2]), [1, 2]),
        chain_hash(root_hash("a"), [1, 2, 0]),
    ]
    assert len({chain_hash(root_hash("a"), [1, 2]), *others}) == 5


def test_blocks_for_rounds_up():
    pool = BlockPool(4, 16)
    assert [pool.blocks_for(tokens) for tokens in (0, 1, 16, 17, 32)] == [0, 1, 1, 2, 2]


def test_allocate_refuses_more_than_there_is_and_takes_nothing():
    pool = BlockPool(3, 2)
    pool.allocate(2)
    with pytest.raises(ValueError, match="2 blocks asked for, 1 available"):
        pool.allocate(2)
    assert (pool.available, pool.held) == (1, 2)


def test_a_published_block_is_found_while_held_and_while_idle():
    pool = BlockPool(4, 2)
    blocks = pool.allocate(2)
    pool.publish(blocks[0], FIRST)
    pool.publish(blocks[1], SECOND)
    assert pool.match([FIRST, SECOND, THIRD]) == blocks
    pool.free(blocks)
    assert pool.match([FIRST, SECOND, THIRD]) == blocks
    assert pool.available == 4
    assert pool.available_beside(blocks) == 2
    pool.share(blocks)
    assert pool.held == 2
    pool.check([blocks])


def test_a_match_stops_at_the_first_gap():
    pool = BlockPool(4, 2)
    blocks = pool.allocate(2)
    pool.publish(blocks[0], FIRST)
    pool.publish(blocks[1], THIRD)
    assert pool.match([FIRST, SECOND, THIRD]) == blocks[:1]


def test_shared_blocks_stay_until_the_last_holder_leaves():
    pool = BlockPool(2, 2)
    blocks = pool.allocate(2)
    pool.publish(blocks[0], FIRST)
    pool.share(blocks[:1])
    pool.free(blocks)
    pool.check([blocks[:1]])
    assert pool.available == 1
    pool.free(blocks[:1])
    pool.check([])


def test_blank_blocks_go_first_then_tails_then_the_least_recently_used():
    pool = BlockPool(5, 2)
    old, new = pool.allocate(2), pool.allocate(2)
    for block, digest in zip(old + new, (FIRST, SECOND, THIRD, FOURTH), strict=True):
        pool.publish(block, digest)
    pool.free(old)
    pool.free(new)
    assert pool.allocate(5) == [4, old[1], old[0], new[1], new[0]]
    assert pool.match([FIRST]) == []


def test_the_first_of_two_equal_blocks_is_the_one_that_is_found():
    pool = BlockPool(2, 2)
    one, other = pool.allocate(2)
    pool.publish(one, FIRST)
    pool.publish(other, FIRST)
    assert pool.match([FIRST]) == [one]
    pool.free([other])
    pool.check([[one]])


def test_what_is_withdrawn_is_not_found_and_is_blank_when_it_is_free():
    pool = BlockPool(3, 2)
    held, idle, other = pool.allocate(3)
    for block, digest in ((held, FIRST), (idle, SECOND), (other, b"other")):
        pool.publish(block, digest)
    pool.free([idle])
    pool.free([other])
    pool.withdraw([FIRST, SECOND, b"unknown"])
    assert pool.match([FIRST]) == pool.match([SECOND]) == [] and pool.has(b"other")
    pool.check([[held]])
    assert pool.allocate(1) == [idle]
    pool.publish(held, FIRST)
    assert pool.match([FIRST]) == [held]
    pool.free([held, idle])
    pool.check([])


class Operations(RuleBasedStateMachine):
    """Operations lets sequences of a few texts match, allocate, publish, withdraw and free in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(6, 2)
        self.holders: list[tuple[list[bytes], list[int]]] = []

    @rule(branch=st.integers(0, 2), length=st.integers(1, 4))
    def start(self, branch: int, length: int) -> None:
        hashes = [chain_hash(root_hash(""), [0, 0])]
        while len(hashes) < length:
            hashes.append(chain_hash(hashes[-1], [branch, len(hashes)]))
        matched = self.pool.match(hashes)
        needed = length - len(matched)
        if needed <= self.pool.available_beside(matched):
            self.pool.share(matched)
            self.holders.append((hashes, matched + self.pool.allocate(needed)))
        else:
            with pytest.raises(ValueError, match="available"):
                self.pool.allocate(self.pool.available + 1)

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def publish(self, data: st.DataObject) -> None:
        hashes, blocks = data.draw(st.sampled_from(self.holders))
        for block, digest in zip(blocks, hashes, strict=True):
            self.pool.publish(block, digest)
        assert len(self.pool.match(hashes)) == len(hashes)

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        hashes, _ = data.draw(st.sampled_from(self.holders))
        self.pool.withdraw(hashes)
        assert not self.pool.match(hashes)

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        _, blocks = self.holders.pop(data.draw(st.integers(0, len(self.holders) - 1)))
        self.pool.free(blocks)

    @invariant()
    def everything_holds(self) -> None:
        self.pool.check(blocks for _, blocks in self.holders)

    def teardown(self) -> None:
        for _, blocks in self.holders:
            self.pool.free(blocks)
        self.pool.check([])
        assert self.pool.available == 6


Operations.TestCase.settings = settings(derandomize=True, deadline=None, max_examples=60, stateful_step_count=40)
TestOperations = Operations.TestCase
