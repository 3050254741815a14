"""A Sequence is one request in the engine: its tokens, how many of them are computed, and the blocks it holds."""

from array import array
from dataclasses import InitVar, dataclass, field

from octavo.engine.api import FinishReason, Request, Routes, TokenLogprobs
from octavo.engine.schedule.blocks import chain_hash, root_hash


@dataclass(slots=True, eq=False)
class Sequence:
    """A Sequence has tokens, of which the first `computed` are done: 0 <= computed <= len(tokens) + pending.

    tokens     p p p p p p p o o          prompt, then outputs
    pending                      ?        tokens that launched steps are about to draw
    computed   ------------^              positions before it are in the cache, or in a launched step
    blocks     [ 5 ][ 2 ][ 9 ]            block i holds the positions from i * block_size on
    hashes      h0   h1                   of full blocks of `tokens`
    published   ------^                   how many blocks were offered to the prefix cache
    """

    request: Request
    arrival: int  # order of arrival, kept through preemption
    max_model_len: InitVar[int]
    tokens: "array[int]" = field(init=False)
    context: int = field(init=False)  # how many positions are ever computed; that of the last output is not
    pending: int = 0
    computed: int = 0
    blocks: "array[int]" = field(default_factory=lambda: array("i"))  # an array, since each step copies it
    hashes: list[bytes] = field(default_factory=list)  # of its first blocks, as far as somebody had to know them
    published: int = 0
    found: int = 0  # how many blocks it found in the prefix cache when it was last looked up
    publishes: bool = True  # whether the prefix cache is in use, and all that its blocks hold is finite
    scored: int = 0  # prompt tokens, counted from the second, whose log-probabilities were returned
    awaits: "Sequence | None" = None  # who is about to compute the block that it would compute first
    followed: int = 0  # how many of its first tokens are known to be those of `awaits`, too
    cached_tokens: int | None = None  # prompt tokens found in the prefix cache; None before the first admission
    seen: int = 0  # positions that it has had, computed or cached, before it was preempted, too
    is_finite: bool = True  # whether all states that were ever computed for it are, as far as that is known
    routed: int = 0  # positions whose routes were told, or are not wanted

    def __post_init__(self, max_model_len: int) -> None:
        self.tokens = array("i", self.request.prompt)
        prompt, max_tokens = len(self.tokens), self.request.params.max_tokens
        self.routed = self.request.params.routes_from or 0
        self.context = max(prompt, min(prompt + max_tokens, max_model_len) - 1)

    @property
    def length(self) -> int:
        """Returns how many tokens it has, with those that are being drawn."""
        return len(self.tokens) + self.pending

    @property
    def remaining(self) -> int:
        """Returns how many of its tokens are still to be computed."""
        return min(self.length, self.context) - self.computed

    @property
    def outputs(self) -> int:
        """Returns how many tokens it has generated."""
        return len(self.tokens) - len(self.request.prompt)

    def hash_blocks(self, count: int, block_size: int) -> None:
        """Hashes the first `count` blocks, which known tokens fill, as far as they are not hashed yet."""
        for start in range(len(self.hashes) * block_size, count * block_size, block_size):
            request = self.request
            parent = self.hashes[-1] if self.hashes else root_hash(request.cache_salt, request.params.experts)
            self.hashes.append(chain_hash(parent, self.tokens[start : start + block_size]))

    def reusable(self, block_size: int) -> int:
        """Returns how many blocks it may take from the prefix cache.

        The block of its last token is not among them: that token is always computed. While its prompt has to be scored
        there are none, since only tokens that are computed have logits.
        """
        return 0 if self._scores_prompt() or not self.publishes else (len(self.tokens) - 1) // block_size

    def _scores_prompt(self) -> bool:
        """Returns whether some of its prompt's log-probabilities are wanted and were not returned yet."""
        return self.request.params.prompt_logprobs is not None and self.scored < len(self.request.prompt) - 1

    def targets(self, start: int, end: int) -> tuple[int, ...]:
        """Returns the prompt tokens that the positions from `start` to `end` predict, if they have to be scored."""
        return tuple(self.request.prompt[start + 1 : end + 1]) if self._scores_prompt() else ()

    def take_scores(self, start: int, scores: tuple[TokenLogprobs, ...]) -> tuple[TokenLogprobs, ...]:
        """Returns the scores of positions from `start` on, without those it had before it was preempted."""
        new = scores[self.scored - start :]
        self.scored += len(new)
        return new

    @property
    def routes_from(self) -> int | None:
        """Returns the first position whose routes are still to be told; returns None if there will be none."""
        return self.routed if self.request.params.routes_from is not None and self.is_finite else None

    def take_routes(self, routes: Routes | None) -> Routes | None:
        """Returns the routes without those of positions that were told before; returns None if nothing is left.

        A step that is prepared while another one runs does not know what that one will tell, and tells it once more.
        """
        if routes is None or self.routes_from is None or routes.start + routes.count <= self.routed:
            return None
        dropped, start = self.routed - routes.start, self.routed
        self.routed = routes.start + routes.count
        ids, weights = (each[dropped * len(each) // routes.count :] for each in (routes.ids, routes.weights))
        return Routes(start, self.routed - start, ids, weights)

    def finish_reason(self) -> FinishReason | None:
        """Returns why its newest token is its last one; returns None if it is not."""
        params = self.request.params
        if params.max_tokens == 0:
            return FinishReason.LENGTH
        if self.tokens[-1] in params.stop_token_ids:
            return FinishReason.STOP
        return FinishReason.LENGTH if len(self.tokens) > self.context else None
