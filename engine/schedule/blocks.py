"""BlockPool knows who holds which block of the KV cache, and finds blocks again by the tokens in them.

A block is in exactly one of three places:

    held    refs > 0           by one sequence, or by several that share a prefix
    idle    refs = 0, cached   free, but its content can still be matched; the least recently used is evicted first
    blank   refs = 0           free and without content to match; handed out before any idle block

A block's hash is chained: it names the tokens of the block and of every block before it, so equal hashes mean equal
prefixes. It is sha256: if collisions could be made, one user's cache could be served to another.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from hashlib import sha256
from struct import pack

from octavo.engine.api import ExpertControl


def root_hash(salt: str, experts: ExpertControl | None = None) -> bytes:
    """Returns the parent hash of a sequence's first block. Sequences of different salts or controls share nothing."""
    root = sha256(salt.encode("utf-8", "surrogatepass")).digest()
    return root if experts is None else sha256(root + repr((experts.masked, experts.biases)).encode()).digest()


def chain_hash(parent: bytes, tokens: Sequence[int]) -> bytes:
    """Returns the hash of a full block that holds `tokens` and follows the block of hash `parent`."""
    return sha256(parent + pack(f"<{len(tokens)}q", *tokens)).digest()


class BlockPool:
    """A BlockPool counts the references to blocks of equal size, numbered from 0. It never touches the cache itself."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size  # tokens
        self._refs = [0] * num_blocks
        self._hash: list[bytes | None] = [None] * num_blocks  # None: not published
        self._cached: dict[bytes, int] = {}  # hash -> the block published under it
        self._idle: dict[int, None] = {}  # insertion order is eviction order
        self._blank = list(reversed(range(num_blocks)))  # a stack: block 0 is handed out first

    @property
    def available(self) -> int:
        """Returns how many blocks can be allocated now."""
        return len(self._blank) + len(self._idle)

    @property
    def held(self) -> int:
        """Returns how many blocks sequences hold."""
        return self.num_blocks - self.available

    def blocks_for(self, tokens: int) -> int:
        """Returns how many blocks so many tokens of one sequence take."""
        return -(-tokens // self.block_size)

    def match(self, hashes: Iterable[bytes]) -> list[int]:
        """Returns the blocks of the longest cached prefix of a chain of hashes. It takes no reference: `share` does."""
        blocks = []
        for digest in hashes:
            block = self._cached.get(digest)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def has(self, digest: bytes) -> bool:
        """Returns whether a block is cached under this hash."""
        return digest in self._cached

    def available_beside(self, matched: Iterable[int]) -> int:
        """Returns how many blocks could still be allocated once `matched` is shared."""
        return self.available - sum(block in self._idle for block in matched)

    def share(self, matched: Iterable[int]) -> None:
        """Takes a reference to each of the blocks that `match` returned."""
        for block in matched:
            self._idle.pop(block, None)
            self._refs[block] += 1

    def allocate(self, count: int) -> list[int]:
        """Hands out blocks that nobody holds, blank ones first, then the least recently used idle ones.

        Raises ValueError, and hands out nothing, when fewer than `count` are available.
        """
        if count > self.available:
            raise ValueError(f"{count} blocks asked for, {self.available} available")
        blocks = [self._blank.pop() if self._blank else self._evict() for _ in range(count)]
        for block in blocks:
            self._refs[block] = 1
        return blocks

    def _evict(self) -> int:
        """Makes the least recently used idle block unfindable, and returns it."""
        block = next(iter(self._idle))
        del self._idle[block]
        digest = self._hash[block]
        assert digest is not None  # idle blocks are published ones
        del self._cached[digest]
        self._hash[block] = None
        return block

    def publish(self, block: int, digest: bytes) -> None:
        """Lets later sequences match a full block. Its content must not change while it is published.

        If two blocks have the same content, the first one stays the one that is found.
        """
        if digest not in self._cached and self._hash[block] is None:
            self._cached[digest] = block
            self._hash[block] = digest

    def withdraw(self, hashes: Iterable[bytes]) -> None:
        """Lets no later sequence match a block under any of these hashes. Whoever holds one keeps it."""
        for digest in hashes:
            block = self._cached.pop(digest, None)
            if block is None:
                continue
            self._hash[block] = None
            if block in self._idle:
                del self._idle[block]
                self._blank.append(block)

    def free(self, blocks: Sequence[int]) -> None:
        """Gives back one reference to each block of a sequence.

        The last block goes first: so the end of a text is evicted before its beginning, which more sequences may share.
        """
        for block in reversed(blocks):
            self._refs[block] -= 1
            if self._refs[block] > 0:
                continue
            if self._hash[block] is None:
                self._blank.append(block)
            else:
                self._idle[block] = None

    def check(self, holders: Iterable[Sequence[int]]) -> None:
        """Asserts every invariant, given the block lists of all sequences."""
        refs = Counter(block for blocks in holders for block in blocks)
        assert [refs[block] for block in range(self.num_blocks)] == self._refs, "references and holders disagree"
        blank, idle = set(self._blank), set(self._idle)
        assert len(blank) == len(self._blank), "a blank block is listed twice"
        assert not blank & idle, "a block is both blank and idle"
        assert blank | idle == {block for block, count in enumerate(self._refs) if count == 0}, "a free block is lost"
        assert all(self._hash[block] is None for block in blank), "a blank block is published"
        assert all(self._hash[block] is not None for block in idle), "an idle block is not published"
        published = {digest: block for block, digest in enumerate(self._hash) if digest is not None}
        assert published == self._cached, "hashes and blocks disagree"
