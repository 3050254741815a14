"""Looks up what a waiting sequence finds in the prefix cache, and whom it had better wait for.

A look-up hashes block after block of the sequence's tokens, and stops at the first that is not cached. While others
run, a step hashes a bounded number of blocks. A sequence that waits for another one compares its tokens with those that
the other publishes, and hashes nothing. So what a step takes does not grow with the prompts that wait.
"""

from collections.abc import Iterable

from octavo.engine.schedule.blocks import BlockPool
from octavo.engine.schedule.sequence import Sequence

HASHED_AT_ONCE = 2048  # blocks, which take some milliseconds
KEPT_FOR_SHORT = 1024  # further blocks for those that have not hashed a stretch yet: long prompts do not delay them
STRETCH = 32  # blocks that are hashed together; it begins with one, since most look-ups miss at once


class PrefixSearch:
    """A PrefixSearch is the search of one step."""

    def __init__(self, pool: BlockPool, running: Iterable[Sequence]) -> None:
        self._pool = pool
        self._running: set[Sequence] = set()
        self._claims: dict[bytes, Sequence] = {}  # by the hash of the first block that each has not published
        self._left = HASHED_AT_ONCE
        for seq in running:
            self.claim(seq)
        self._is_bounded = bool(self._running)  # Nobody has to wait for the hashing if nobody runs.

    def claim(self, seq: Sequence) -> None:
        """Lets others wait for the next block of a running sequence, if its tokens are known."""
        self._running.add(seq)
        following = seq.published + 1
        if seq.publishes and following * self._pool.block_size <= len(seq.tokens):
            seq.hash_blocks(following, self._pool.block_size)
            self._claims[seq.hashes[seq.published]] = seq

    def look_up(self, seq: Sequence) -> bool:
        """Looks a waiting sequence up; returns False if only a later step can say more.

        Otherwise `seq.awaits` is the running sequence that is about to compute a block of it. If there is none,
        `seq.found` says how many of its blocks are cached.
        """
        if seq.awaits is not None and self._still_awaits(seq, seq.awaits):
            return True
        seq.awaits = None
        reusable = seq.reusable(self._pool.block_size)
        if not self._find(seq, reusable):
            return False
        if seq.found < reusable:
            seq.awaits = self._claims.get(seq.hashes[seq.found])
            seq.followed = (seq.found + 1) * self._pool.block_size
        return True

    def _find(self, seq: Sequence, reusable: int) -> bool:
        """Counts in `seq.found` how many of its first blocks are cached; returns False if the hashing is not done."""
        found = min(seq.found, reusable)
        if found and not self._pool.has(seq.hashes[found - 1]):
            found = 0
        while found < reusable:
            if found == len(seq.hashes) and not self._hash_more(seq, reusable):
                seq.found = found
                return False
            if not self._pool.has(seq.hashes[found]):
                break
            found += 1
        seq.found = found
        return True

    def _hash_more(self, seq: Sequence, reusable: int) -> bool:
        """Hashes the next blocks of a sequence; returns False if this step has hashed enough."""
        known = len(seq.hashes)
        if self._is_bounded and self._left <= (-KEPT_FOR_SHORT if known < STRETCH else 0):
            return False
        seq.hash_blocks(min(known + max(1, min(known, STRETCH)), reusable), self._pool.block_size)
        self._left -= len(seq.hashes) - known
        return True

    def _still_awaits(self, seq: Sequence, other: Sequence) -> bool:
        """Returns whether a running sequence is still about to compute a block of one that waits."""
        if other not in self._running or not other.publishes:
            return False
        size = self._pool.block_size
        end = (other.published + 1) * size
        if end > min(len(other.tokens), seq.reusable(size) * size):
            return False
        if seq.tokens[seq.followed : end] != other.tokens[seq.followed : end]:
            return False
        seq.followed = max(end, seq.followed)
        return True
