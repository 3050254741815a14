"""Scheduler decides which tokens the next step computes, and takes in what came of them.

There is no prefill mode and no decode mode: a step computes each sequence's tokens from `computed` to `length`, as far
as the token budget goes. Decoding is the case of one token, chunked prefill the case where the budget ends first.

    waiting  --admit-->  running  --stop, length, abort, error-->  gone, with one terminal output
             <-preempt-                                           (its blocks are freed, its tokens are kept)

Both lists are in order of arrival. The oldest running sequence is never preempted, so it ends; then the next one is
the oldest: nobody starves.

Blocks are given in order of arrival, the tokens of a step by need (shares.py).
"""

from array import array
from bisect import insort
from collections.abc import Iterable
from dataclasses import dataclass
from operator import attrgetter

from octavo.engine.api import EngineStats, ExpertShape, FinishReason, Output, Request, Routes, TokenLogprobs
from octavo.engine.schedule.batch import NOT_A_NUMBER, PENDING, Batch, History, Row, Sample
from octavo.engine.schedule.blocks import BlockPool
from octavo.engine.schedule.prefix import PrefixSearch
from octavo.engine.schedule.refusal import why_experts_are_refused
from octavo.engine.schedule.sequence import Sequence
from octavo.engine.schedule.shares import share_out

BY_ARRIVAL = attrgetter("arrival")


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits holds the bounds of a step and of a sequence, in tokens and sequences."""

    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    vocab_size: int
    enable_prefix_caching: bool = True
    experts: ExpertShape | None = None  # None: the model is dense

    def describe(self) -> str:
        """Returns a line for the log."""
        return f"at most {self.max_num_seqs:,} sequences at once, {self.max_num_batched_tokens:,} tokens a step"


class Scheduler:
    """A Scheduler owns the block pool, and every sequence from `add` to its terminal output."""

    def __init__(self, pool: BlockPool, limits: Limits) -> None:
        self.pool = pool
        self.limits = limits
        self.max_len = min(limits.max_model_len, pool.num_blocks * pool.block_size)
        # If more sequences ran than a step has tokens, they would only starve each other.
        self.max_running = min(limits.max_num_seqs, limits.max_num_batched_tokens)
        self.running: list[Sequence] = []  # oldest first, like `waiting`
        self.waiting: list[Sequence] = []
        self._sequences: dict[str, Sequence] = {}
        self._arrivals = 0
        self._preemptions = 0
        self._prefix_queries = 0
        self._prefix_hits = 0

    def has_work(self) -> bool:
        """Returns whether any sequence has not ended."""
        return bool(self._sequences)

    def stats(self) -> EngineStats:
        """Returns the gauges of this moment, and the totals since the start."""
        return EngineStats(
            running=len(self.running),
            waiting=len(self.waiting),
            kv_cache_usage=self.pool.held / self.pool.num_blocks,
            preemptions=self._preemptions,
            prefix_queries=self._prefix_queries,
            prefix_hits=self._prefix_hits,
        )

    # Requests in and out.

    def add(self, request: Request) -> Output | None:
        """Queues a request, or returns its terminal output at once if it can never run."""
        if (reason := self._refusal(request)) is not None:
            return Output(request.id, finish_reason=FinishReason.ERROR, error=reason)
        seq = Sequence(request, self._arrivals, self.max_len, publishes=self.limits.enable_prefix_caching)
        self._arrivals += 1
        self._sequences[request.id] = seq
        self.waiting.append(seq)
        return None

    def _refusal(self, request: Request) -> str | None:
        """Returns why a request can never run, in a sentence for the client; returns None if it can."""
        length = len(request.prompt)
        if request.id in self._sequences:
            return f"A request with the id {request.id} is already running."
        if length == 0:
            return "The prompt is empty: send at least one token."
        if request.params.max_tokens < 0:
            return "max_tokens must be at least 0."
        room = self.max_len - min(request.params.max_tokens, 1)
        if length > room:
            return f"The prompt has {length} tokens and at most {room} fit: shorten it."
        if min(request.prompt) < 0 or max(request.prompt) >= self.limits.vocab_size:
            return f"The prompt has a token id outside of the vocabulary of {self.limits.vocab_size} ids."
        return why_experts_are_refused(request.params, self.limits.experts)

    def abort(self, request_id: str) -> Output | None:
        """Forgets a request and returns its terminal output; returns None when it is unknown or has ended."""
        seq = self._sequences.get(request_id)
        return None if seq is None else self._end(seq, FinishReason.ABORT)

    # Before a step.

    def is_short(self) -> bool:
        """Returns whether the next step may preempt a sequence: running ones may need more blocks than are free."""
        most = self.limits.max_num_batched_tokens
        ends = ((seq, seq.computed + min(seq.remaining, most)) for seq in self.running)
        missing = sum(max(0, self.pool.blocks_for(end) - len(seq.blocks)) for seq, end in ends)
        return missing > self.pool.available

    def schedule(self) -> Batch:
        """Chooses the next step's tokens and counts them as computed."""
        awaited = self._admit_waiting()
        shares = share_out(self.running, awaited, self.limits.max_num_batched_tokens)
        rows: list[Row] = []
        index = 0
        while index < len(self.running):  # preemption shortens the list from its end, where sequences have no row yet
            seq = self.running[index]
            index += 1
            count = shares.get(seq, 0)
            if count > 0 and self._make_room(seq, count):
                rows.append(self._advance(seq, count))
        return Batch(tuple(rows))

    def _make_room(self, seq: Sequence, count: int) -> bool:
        """Gives a running sequence the blocks for its next tokens, and preempts the newest sequences to get them.

        Returns False if the sequence itself was the newest and was preempted.
        """
        missing = self.pool.blocks_for(seq.computed + count) - len(seq.blocks)
        while missing > self.pool.available:
            newest = self.running[-1]
            self._preempt(newest)
            if newest is seq:
                return False
        seq.blocks.extend(self.pool.allocate(missing))
        return True

    def _preempt(self, seq: Sequence) -> None:
        """Takes the blocks of a sequence. It will compute its tokens again, or find them in the prefix cache."""
        self.running.remove(seq)
        self._release(seq)
        insort(self.waiting, seq, key=BY_ARRIVAL)
        self._preemptions += 1

    def _admit_waiting(self) -> dict[Sequence, int]:
        """Admits sequences in order of arrival, as long as there is room for all of their tokens.

        A sequence waits while a running one is about to compute its next block, or while it is looked up in the prefix
        cache. Others may pass it meanwhile. Nobody may pass a sequence for which there is no room, since it would wait
        forever.

        Returns the running sequences that others wait for, each with the fewest tokens that one of those others needs.
        """
        awaited: dict[Sequence, int] = {}
        if not self.waiting or len(self.running) == self.max_running:
            return awaited
        search = PrefixSearch(self.pool, self.running)
        promised = sum(map(self._promised, self.running))
        for seq in list(self.waiting):
            if len(self.running) == self.max_running:
                break
            if not search.look_up(seq):
                continue
            if seq.awaits is not None:
                awaited[seq.awaits] = min(seq.remaining, awaited.get(seq.awaits, seq.remaining))
            elif (matched := self._matched(seq, promised)) is not None:
                self._admit(seq, matched)
                promised += self._promised(seq)
                search.claim(seq)
            else:
                break
        return awaited

    def _promised(self, seq: Sequence) -> int:
        """Returns how many blocks a running sequence still takes for its tokens, and one more for it to grow into."""
        return self.pool.blocks_for(seq.length) - len(seq.blocks) + 1

    def _matched(self, seq: Sequence, promised: int) -> list[int] | None:
        """Returns the cached blocks of a waiting sequence; returns None if there is no room for its other tokens.

        There is room if all its known tokens and the next fit, beside what running sequences are promised. Without the
        promises, a sequence that is admitted in one step would be preempted in the next.
        """
        following = min(seq.request.params.max_tokens, 1)
        needed = self.pool.blocks_for(len(seq.tokens) + following) + promised
        if needed - seq.found > self.pool.available:  # It saves the search of a long prompt that waits for room.
            return None
        matched = self.pool.match(seq.hashes[: seq.found])
        return matched if needed - len(matched) <= self.pool.available_beside(matched) else None

    def _admit(self, seq: Sequence, matched: list[int]) -> None:
        """Lets a waiting sequence run, on the cached blocks that it matched."""
        self.pool.share(matched)
        seq.blocks = array("i", matched)
        seq.published = len(matched)
        seq.computed = len(matched) * self.pool.block_size
        if seq.cached_tokens is None:  # if a preempted sequence finds its own blocks again, that is no hit
            seq.cached_tokens = seq.computed
            if self.limits.enable_prefix_caching:
                self._prefix_queries += len(seq.tokens)
                self._prefix_hits += seq.computed
        self.waiting.remove(seq)
        insort(self.running, seq, key=BY_ARRIVAL)

    def _advance(self, seq: Sequence, count: int) -> Row:
        """Returns the row that computes the next `count` tokens of a sequence, and counts them as computed."""
        params, start, end = seq.request.params, seq.computed, seq.computed + count
        known = seq.tokens[start:end]
        is_sampled = end == seq.length and params.max_tokens > 0
        row = Row(
            id=seq.request.id,
            start=start,
            tokens=(*known, *[PENDING] * (count - len(known))),
            blocks=seq.blocks[:],
            params=params,
            output=seq.outputs + seq.pending if is_sampled else None,
            targets=seq.targets(start, end),
            history=History(seq.tokens, len(seq.tokens)) if is_sampled and params.looks_back else (),
            first_new=max(start, seq.seen),
            routes_from=seq.routes_from,
        )
        seq.computed, seq.seen = end, max(end, seq.seen)
        if is_sampled:
            seq.pending += 1
        return row

    # After a step.

    def update(self, batch: Batch, samples: Iterable[Sample]) -> list[Output]:
        """Takes in a sample for each row of a batch; returns what they tell.

        Later steps may already be scheduled, so one may still write to freed blocks. This is harmless: steps run in
        order, so the next owner overwrites it, and only blocks that are full in collected steps are published.
        """
        outputs = []
        for row, sample in zip(batch.rows, samples, strict=True):
            seq = self._sequences.get(row.id)
            if seq is None:  # it ended after the batch was scheduled
                continue
            if (output := self._take(seq, row, sample)) is not None:
                outputs.append(output)
        return outputs

    def _take(self, seq: Sequence, row: Row, sample: Sample) -> Output | None:
        """Takes in what came of one row; returns what its sequence tells of it, or None when that is nothing."""
        seq.publishes &= sample.is_finite
        seq.is_finite &= sample.is_finite
        if (row.output is not None and sample.token is None) or (row.targets and not sample.is_finite):
            if sample.error == NOT_A_NUMBER:
                self.pool.withdraw(seq.hashes)
            return self._end(seq, FinishReason.LENGTH if sample.ended else FinishReason.ERROR, sample.error)
        self._publish(seq, row)
        scores, routes = seq.take_scores(row.start, sample.prompt_logprobs), seq.take_routes(sample.routes)
        # Otherwise more of the prompt follows, or the sequence was preempted and has this token from another step.
        if row.end == len(seq.tokens):
            return self._append(seq, sample, scores, routes)
        if scores or routes is not None:
            cached = seq.cached_tokens or 0
            return Output(seq.request.id, cached_tokens=cached, prompt_logprobs=scores, routes=routes)
        return None

    def _publish(self, seq: Sequence, row: Row) -> None:
        """Offers the prefix cache the blocks that the row has filled with computed tokens.

        If the sequence has been preempted since, it may hold other blocks, which a later step computes.
        """
        size = self.pool.block_size
        full = min(row.end, seq.computed, len(seq.tokens)) // size if seq.publishes else 0
        seq.hash_blocks(full, size)
        for index in range(seq.published, full):
            if seq.blocks[index] != row.blocks[index]:
                break
            self.pool.publish(seq.blocks[index], seq.hashes[index])
            seq.published = index + 1

    def _append(
        self, seq: Sequence, sample: Sample, scores: tuple[TokenLogprobs, ...], routes: Routes | None
    ) -> Output:
        """Appends the token that was sampled, if any; returns it, and ends the sequence if it was the last one."""
        tokens = () if sample.token is None else (sample.token,)
        seq.tokens.extend(tokens)
        seq.pending = max(0, seq.pending - len(tokens))  # preemption may have set it to 0 already
        reason = FinishReason.STOP if sample.ended else seq.finish_reason()
        output = Output(
            id=seq.request.id,
            token_ids=tokens,
            logprobs=() if sample.logprobs is None else (sample.logprobs,),
            cached_tokens=seq.cached_tokens or 0,
            finish_reason=reason,
            prompt_logprobs=scores,
            routes=routes,
        )
        if reason is not None:
            self._forget(seq)
        return output

    def _end(self, seq: Sequence, reason: FinishReason, error: str | None = None) -> Output:
        """Ends a sequence without a further token; returns its terminal output."""
        self._forget(seq)
        return Output(seq.request.id, cached_tokens=seq.cached_tokens or 0, finish_reason=reason, error=error)

    def _forget(self, seq: Sequence) -> None:
        """Takes a sequence off its list, and frees its blocks."""
        if seq in self.running:
            self.running.remove(seq)
        else:
            self.waiting.remove(seq)
        del self._sequences[seq.request.id]
        self._release(seq)

    def _release(self, seq: Sequence) -> None:
        """Frees the blocks of a sequence, which has computed nothing from then on."""
        self.pool.free(seq.blocks)
        seq.blocks = array("i")
        seq.computed = seq.published = seq.pending = 0
        seq.publishes = self.limits.enable_prefix_caching
