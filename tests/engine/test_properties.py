"""What every request is promised, under random loads on pools and budgets too small for them.

The fake model's tokens are a pure function of what the cache holds, so an output that equals the unhurried one shows
that batching, chunking, preemption and prefix sharing changed nothing.
"""

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from engine.api import FinishReason
from tests.engine.fakes import Collector, check, continuation, engine, request, run, scores

SETTINGS = settings(derandomize=True, deadline=None, max_examples=200, stateful_step_count=50)
SHAPES = st.fixed_dictionaries(
    {
        "num_blocks": st.integers(3, 12),
        "block_size": st.sampled_from([2, 3, 4]),
        "max_num_seqs": st.integers(1, 6),
        "max_num_batched_tokens": st.integers(1, 24),
        "enable_prefix_caching": st.booleans(),
    }
)


@dataclass
class Sent:
    prompt: list[int]
    max_tokens: int
    scored: bool
    aborted: bool = False


class Load(RuleBasedStateMachine):
    """Requests come, steps pass, clients leave, in any order; at the end everything is drained."""

    @initialize(shape=SHAPES)
    def start(self, shape: dict) -> None:
        self.core = engine(**shape)
        self.collector = Collector()
        self.sent: dict[str, Sent] = {}

    @rule(
        text=st.integers(0, 2),
        length=st.integers(0, 20),
        max_tokens=st.integers(0, 12),
        n=st.integers(1, 3),
        scored=st.booleans(),
    )
    def add(self, text: int, length: int, max_tokens: int, n: int, scored: bool) -> None:
        prompt = [text // 2] * min(length, 6) + [text] * max(length - 6, 0)  # two of three texts share six tokens
        for _ in range(n):
            name = f"r{len(self.sent)}"
            self.sent[name] = Sent(prompt, max_tokens, scored)
            params = {"repetition_penalty": 1 + n % 2, "prompt_logprobs": 0 if scored else None}
            self.collector.take(self.core.add(request(name, prompt, max_tokens, **params)))
        check(self.core)

    @rule(count=st.integers(1, 4))
    def step(self, count: int) -> None:
        for _ in range(count):
            if self.core.has_work():
                for output in self.core.step().outputs:
                    self.collector.take(output)
                check(self.core)

    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        if self.sent:
            name = data.draw(st.sampled_from(sorted(self.sent)))
            output = self.core.abort(name)
            assert (output is None) == (name in self.collector.ended)
            self.collector.take(output)
            self.sent[name].aborted |= output is not None
            check(self.core)

    def teardown(self) -> None:
        if hasattr(self, "core"):
            bound = 20 + 40 * sum(len(sent.prompt) + sent.max_tokens for sent in self.sent.values())
            run(self.core, self.collector, bound)
            assert self.core.scheduler.pool.held == 0
            assert self.collector.ended.keys() == self.sent.keys()
            for name, sent in self.sent.items():
                self._is_as_promised(name, sent)

    def _is_as_promised(self, name: str, sent: Sent) -> None:
        tokens, reason = self.collector.tokens[name], self.collector.reason(name)
        limit = self.core.scheduler.max_len
        if not sent.prompt or len(sent.prompt) + min(sent.max_tokens, 1) > limit:
            assert reason is FinishReason.ERROR
            return
        length = min(sent.max_tokens, limit - len(sent.prompt))
        assert tokens == continuation(sent.prompt, len(tokens))
        assert (reason is FinishReason.ABORT) == sent.aborted
        assert len(tokens) < max(length, 1) if sent.aborted else len(tokens) == length
        told, expected = self.collector.prompt_logprobs[name], scores(sent.prompt) if sent.scored else ()
        assert told == (expected[: len(told)] if sent.aborted and not tokens else expected)


Load.TestCase.settings = SETTINGS
TestLoad = Load.TestCase


@SETTINGS
@given(shape=SHAPES, lengths=st.lists(st.integers(1, 12), min_size=2, max_size=6))
def test_the_oldest_is_never_made_to_wait_by_newer_ones(shape, lengths):
    """Nobody starves: once the oldest runs, every step computes some of it, whatever else is there."""
    core = engine(**shape)
    for index, length in enumerate(lengths):
        core.add(request(f"r{index}", [index] * length, 10))
    while core.has_work():
        oldest = min(core.scheduler.running + core.scheduler.waiting, key=lambda seq: seq.arrival)
        core.step()
        assert oldest.request.id in dict(core.runner.steps[-1])


@SETTINGS
@given(length=st.integers(1, 40), budget=st.integers(1, 48), block_size=st.sampled_from([1, 4, 8]))
def test_a_prompt_is_computed_once_for_all_its_choices(length, budget, block_size):
    """Each of the other seven computes only what the prefix cache never gives: the prompt's last block."""
    core, collector = engine(96, block_size, max_num_batched_tokens=budget), Collector()
    for choice in range(8):
        core.add(request(f"c{choice}", range(length), 1, choice=choice))
    run(core, collector)
    shared = (length - 1) // block_size * block_size
    assert core.runner.computed == length + 7 * (length - shared)
    assert {collector.ended[f"c{choice}"].cached_tokens for choice in range(1, 8)} == {shared}


@SETTINGS
@given(
    shape=SHAPES,
    loads=st.lists(st.tuples(st.integers(0, 2), st.integers(1, 15), st.integers(0, 10)), min_size=1, max_size=8),
    aborts=st.sets(st.integers(0, 7)),
)
def test_preparing_a_step_while_another_runs_changes_nothing(shape, loads, aborts):
    """`update` trails one step behind `schedule`: sequences are preempted and aborted between the two."""
    core, collector = engine(**shape), Collector()
    texts = {}
    for index, (text, length, max_tokens) in enumerate(loads):
        texts[f"r{index}"] = [text] * length, max_tokens
        collector.take(core.add(request(f"r{index}", *texts[f"r{index}"], prompt_logprobs=0 if text == 1 else None)))
    pending = core.scheduler.schedule()
    for step in range(2000):
        following = core.scheduler.schedule()
        if step in aborts:
            collector.take(core.abort(f"r{step}"))
        for output in core.scheduler.update(pending, core.runner.run(pending) if pending.rows else ()):
            collector.take(output)
        check(core)
        pending = following
        if not core.has_work():
            break
    assert collector.ended.keys() == texts.keys()
    assert core.scheduler.pool.held == 0
    for name, tokens in collector.tokens.items():
        assert tokens == continuation(texts[name][0], len(tokens))
        if texts[name][0][0] == 1 and collector.reason(name) is FinishReason.LENGTH:
            assert collector.prompt_logprobs[name] == scores(texts[name][0])
