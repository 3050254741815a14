"""Tests that the prefix cache never holds what is not finite, whoever notices and whenever."""

from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.engine.api import FinishReason
from octavo.engine.engine import Engine
from octavo.engine.schedule.batch import Batch, Row, Sample
from tests.engine.fakes import Collector, FakeRunner, check, continuation, engine, request, run, scores

BAD = 666


@dataclass
class Broken:
    """Broken says what a model does with the token BAD."""

    state: bool = True  # The states of a row that computes it are not finite.
    later: bool = False  # Nor is any logit after it.


class BrokenRunner(FakeRunner):
    """A BrokenRunner's model makes no number of the token BAD."""

    def __init__(self, broken: Broken, overlaps: bool) -> None:
        super().__init__(4, overlaps)
        self.broken = broken

    def run(self, batch: Batch) -> list[Sample]:
        return [self._broken(row, sample) for row, sample in zip(batch.rows, super().run(batch), strict=True)]

    def _broken(self, row: Row, sample: Sample) -> Sample:
        seen = [self.cache[slot] for slot in self._slots(row)]
        if self.broken.later and BAD in seen:
            sample = replace(sample, token=None)
        return replace(sample, is_finite=not (self.broken.state and BAD in row.tokens))


@pytest.fixture(params=[False, True], ids=["plain", "overlapped"])
def overlaps(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def broken_engine(overlaps: bool, **changes) -> Engine:
    broken = Broken(**{key: changes.pop(key) for key in ("state", "later") if key in changes})
    return Engine(engine(**changes).scheduler, BrokenRunner(broken, overlaps))


def serve(core: Engine, *requests) -> Collector:
    collector = Collector()
    for each in requests:
        collector.take(core.add(each))
    run(core, collector)
    return collector


PROMPT = [*range(40), BAD, *range(50, 90)]  # in chunks of 32, BAD is in the second of three


def test_a_chunk_that_is_not_finite_is_not_published_nor_is_what_follows(overlaps):
    """The tokens that are sampled are numbers: the request is answered, and only the first chunk is found again."""
    core = broken_engine(overlaps)
    done = serve(core, request("a", PROMPT, 3))
    assert done.tokens["a"] == continuation(PROMPT, 3)
    assert serve(core, request("b", PROMPT, 3)).ended["b"].cached_tokens == 32
    assert core.scheduler.pool.available == core.scheduler.pool.num_blocks


def test_one_that_ends_for_it_leaves_nothing_not_even_its_earlier_chunks(overlaps):
    core = broken_engine(overlaps, later=True)
    done = serve(core, request("good", PROMPT[:40], 1), request("bad", PROMPT, 3))
    assert (done.reason("good"), done.reason("bad")) == (FinishReason.LENGTH, FinishReason.ERROR)
    assert serve(core, request("again", PROMPT[:40], 1)).ended["again"].cached_tokens == 0
    assert serve(core, request("then", PROMPT[:40], 1)).ended["then"].cached_tokens == 36


def test_what_only_the_token_tells_is_withdrawn_too(overlaps):
    """The states are finite, and are published chunk by chunk; then the logits are not."""
    core = broken_engine(overlaps, state=False, later=True)
    serve(core, request("bad", PROMPT, 3))
    assert serve(core, request("again", [*PROMPT[:64], 1], 1)).ended["again"].cached_tokens == 0


def test_one_that_was_preempted_leaves_nothing_either(overlaps):
    core = broken_engine(overlaps, later=True, state=False, num_blocks=40)
    collector = Collector()
    core.add(request("bad", PROMPT, 3))
    for _ in range(2):
        for output in core.step().outputs:
            collector.take(output)
    core.scheduler._preempt(core.scheduler.running[0])
    assert core.scheduler.pool.match(core.scheduler.waiting[0].hashes)
    run(core, collector)
    assert collector.reason("bad") is FinishReason.ERROR
    assert serve(core, request("again", [*PROMPT[:64], 1], 1)).ended["again"].cached_tokens == 0


def test_nobody_waits_for_blocks_that_will_not_be_published(overlaps):
    """Both have the same prompt. The second waits for the first, until that is known not to be finite."""
    core, collector = broken_engine(overlaps), Collector()
    core.add(request("a", PROMPT, 100))
    core.add(request("b", PROMPT, 3))
    for _ in range(8):
        for output in core.step().outputs:
            collector.take(output)
        check(core)
    assert collector.tokens["b"]
    run(core, collector)
    assert collector.tokens == {"a": continuation(PROMPT, 100), "b": continuation(PROMPT, 3)}


def test_a_prompt_whose_scores_are_no_numbers_ends_with_an_error(overlaps):
    core = broken_engine(overlaps)
    done = serve(core, request("bad", PROMPT, 3, prompt_logprobs=0), request("good", [1, 2, 3], 3, prompt_logprobs=0))
    assert done.reason("bad") is FinishReason.ERROR and "not a number" in done.ended["bad"].error
    assert done.prompt_logprobs["good"] == scores([1, 2, 3])


def test_a_row_from_before_a_preemption_publishes_no_block_of_a_later_step():
    """The sequence holds other blocks by then, and nobody knows yet what the later step makes of them."""
    scheduler = engine(block_size=4).scheduler
    scheduler.add(request("a", range(9), 3))
    first = scheduler.schedule()
    (seq,) = scheduler.running
    scheduler._preempt(seq)
    taken = scheduler.pool.allocate(2)  # so that it gets other ones
    scheduler.schedule()
    assert set(seq.blocks).isdisjoint(first.rows[0].blocks[:2])
    scheduler.update(first, [Sample(5)])
    assert not scheduler.pool.match(seq.hashes)
    scheduler.pool.check([seq.blocks, taken])


class Recording(BrokenRunner):
    """Remembers which blocks hold the token BAD."""

    def holds_bad(self, block: int) -> bool:
        return BAD in (self.cache.get(slot) for slot in range(4 * block, 4 * block + 4))


@settings(derandomize=True, deadline=None, max_examples=100)
@given(
    prompts=st.lists(
        st.tuples(st.integers(0, 2), st.integers(1, 30), st.none() | st.integers(0, 29)), min_size=1, max_size=8
    ),
    num_blocks=st.integers(10, 24),
    budget=st.integers(2, 16),
    overlapped=st.booleans(),
    later=st.booleans(),
)
def test_under_any_load_nothing_bad_is_found_and_nobody_waits_for_ever(prompts, num_blocks, budget, overlapped, later):
    """Prompts share prefixes, some with a bad token; pool and budget are too small for all of them at once."""
    core = engine(num_blocks, max_num_batched_tokens=budget)
    core = Engine(core.scheduler, Recording(Broken(later=later), overlapped))
    collector, texts = Collector(), {}
    for index, (text, length, bad) in enumerate(prompts):
        tokens = [text // 2] * min(length, 12) + [text] * max(length - 12, 0)
        if bad is not None and bad < length:
            tokens[bad] = BAD
        texts[f"r{index}"] = tokens
        collector.take(core.add(request(f"r{index}", tokens, 5)))
        for output in core.step().outputs:
            collector.take(output)
    run(core, collector)
    pool = core.scheduler.pool
    assert not any(core.runner.holds_bad(block) for block in pool._cached.values())
    for name, tokens in texts.items():
        if later and BAD in tokens:
            assert collector.reason(name) is FinishReason.ERROR
        else:
            assert collector.tokens[name] == continuation(tokens, 5)


@pytest.mark.parametrize("later", [False, True])
def test_routes_are_told_up_to_the_first_row_that_is_not_finite(overlaps, later):
    """Whatever is computed behind it chose its experts by the bad row, even after a preemption."""
    core, collector = broken_engine(overlaps, later=later), Collector()
    core.add(request("a", PROMPT, 6, routes_from=5))
    core.add(request("b", PROMPT[:40], 6, routes_from=5))
    for step in range(20):
        for output in core.step().outputs:
            collector.take(output)
        if step == 5 and core.scheduler.running:
            core.scheduler._preempt(core.scheduler.running[0])
    run(core, collector)
    assert collector.ended.keys() == {"a", "b"}
    told = collector.routes["a"]
    assert (told.start, told.count) == (5, 32 - 5)  # the first chunk
    assert (collector.routes["b"].start, collector.routes["b"].count) == (5, 45 - 5)
