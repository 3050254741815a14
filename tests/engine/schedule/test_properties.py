"""Tests what every request is promised, under random loads on pools and budgets that are too small for them.

The fake model's tokens are a pure function of what the cache holds, so an output that equals the unhurried one shows
that batching, chunking, preemption and prefix sharing changed nothing.
"""

from array import array
from collections.abc import Set
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from octavo.engine.api import FinishReason
from tests.engine.fakes import VOCAB, Collector, check, continuation, engine, request, run, scores

SETTINGS = settings(derandomize=True, deadline=None, max_examples=200, stateful_step_count=50)
SETUPS = st.fixed_dictionaries(
    {
        "num_blocks": st.integers(3, 12),
        "block_size": st.sampled_from([2, 3, 4]),
        "max_num_seqs": st.integers(1, 6),
        "max_num_batched_tokens": st.integers(1, 24),
        "enable_prefix_caching": st.booleans(),
        "overlaps": st.booleans(),
    }
)
TOLD = st.fixed_dictionaries(
    {"prompt_logprobs": st.sampled_from([None, 0]), "routes_from": st.sampled_from([None, 0, 1, 5, 30])}
)


@dataclass
class Sent:
    prompt: list[int]
    max_tokens: int
    scored: bool
    stop: tuple[int, ...]
    routes_from: int | None
    aborted: bool = False

    def expected(self, limit: int) -> tuple[int, ...]:
        """Returns what it generates if nobody aborts it."""
        tokens = continuation(self.prompt, min(self.max_tokens, limit - len(self.prompt)))
        ends = [index for index, token in enumerate(tokens) if token in self.stop]
        return tokens[: ends[0] + 1] if ends else tokens


class Load(RuleBasedStateMachine):
    """A Load lets requests come, steps pass and clients leave in any order. At the end everything is drained."""

    @initialize(setup=SETUPS)
    def start(self, setup: dict) -> None:
        self.core = engine(**setup)
        self.collector = Collector()
        self.sent: dict[str, Sent] = {}

    @rule(
        text=st.integers(0, 2),
        length=st.integers(0, 20),
        max_tokens=st.integers(0, 12),
        n=st.integers(1, 3),
        told=TOLD,
        stops=st.booleans(),
    )
    def add(self, text: int, length: int, max_tokens: int, n: int, told: dict[str, int | None], stops: bool) -> None:
        prompt = [text // 2] * min(length, 6) + [text] * max(length - 6, 0)  # two of three texts share six tokens
        for _ in range(n):
            name = f"r{len(self.sent)}"
            stop = tuple(range(0, VOCAB, 4)) if stops else ()
            self.sent[name] = Sent(prompt, max_tokens, told["prompt_logprobs"] == 0, stop, told["routes_from"])
            params = {"repetition_penalty": 1 + n % 2, "stop_token_ids": stop, **told}
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
            self.core.runner.expert_use()
            assert self.core.runner.used == sum(map(len, self.core.runner.counted.values()))

    def _is_as_promised(self, name: str, sent: Sent) -> None:
        tokens, reason = self.collector.tokens[name], self.collector.reason(name)
        limit = self.core.scheduler.max_len
        if not sent.prompt or len(sent.prompt) + min(sent.max_tokens, 1) > limit:
            assert reason is FinishReason.ERROR
            return
        wanted = sent.expected(limit)
        assert tokens == wanted[: len(tokens)]
        assert (reason is FinishReason.ABORT) == sent.aborted
        assert len(tokens) < max(len(wanted), 1) if sent.aborted else len(tokens) == len(wanted)
        assert sent.aborted or (reason is FinishReason.STOP) == (tokens[-1:] != () and tokens[-1] in sent.stop)
        told, expected = self.collector.prompt_logprobs[name], scores(sent.prompt) if sent.scored else ()
        assert told == (expected[: len(told)] if sent.aborted and not tokens else expected)
        self._is_routed(name, sent, [*sent.prompt, *tokens])

    def _is_routed(self, name: str, sent: Sent, text: list[int]) -> None:
        """Asserts that each position but the last was told, and that each was counted at most once."""
        counted = self.core.runner.counted.get(name, [])
        assert len(set(counted)) == len(counted)
        if not sent.aborted:
            computed = range(self.collector.ended[name].cached_tokens, len(text) - 1 if sent.max_tokens else len(text))
            assert set(counted) <= {*computed, len(text) - 1}
            # A sequence that is preempted may find what it has not computed in the prefix cache.
            assert set(computed) <= set(counted) or self.core.scheduler.stats().preemptions
        wanted = list(enumerate(text))[: -1 if sent.max_tokens else None][sent.routes_from or 0 :]
        if sent.routes_from is None or not wanted:
            assert name not in self.collector.routes
            return
        told = self.collector.routes.get(name)
        assert sent.aborted or told is not None
        if told is not None:
            ids, weights = array("i", told.ids), array("f", told.weights)
            assert told.start == sent.routes_from and len(ids) == told.count
            assert list(zip(weights, ids, strict=True)) == (wanted[: told.count] if sent.aborted else wanted)


Load.TestCase.settings = SETTINGS
TestLoad = Load.TestCase


@SETTINGS
@given(setup=SETUPS, lengths=st.lists(st.integers(1, 12), min_size=2, max_size=6))
def test_the_oldest_is_never_made_to_wait_by_newer_ones(setup, lengths):
    """Nobody starves: while the oldest has something to compute, every step computes some of it."""
    core = engine(**setup)
    for index, length in enumerate(lengths):
        core.add(request(f"r{index}", [index] * length, 10))
    while sequences := core.scheduler.running + core.scheduler.waiting:
        oldest = min(sequences, key=lambda seq: seq.arrival)
        is_drawing_its_last = not oldest.remaining
        core.step()
        assert is_drawing_its_last or oldest.request.id in dict(core.runner.steps[-1])


@SETTINGS
@given(length=st.integers(1, 40), budget=st.integers(1, 48), block_size=st.sampled_from([1, 4, 8]))
def test_a_prompt_is_computed_once_for_all_its_choices(length, budget, block_size):
    """The other seven compute only the prompt's last block, which never comes from the prefix cache."""
    core, collector = engine(96, block_size, max_num_batched_tokens=budget), Collector()
    for choice in range(8):
        core.add(request(f"c{choice}", range(length), 1, choice=choice))
    run(core, collector)
    shared = (length - 1) // block_size * block_size
    assert core.runner.computed == length + 7 * (length - shared)
    assert {collector.ended[f"c{choice}"].cached_tokens for choice in range(1, 8)} == {shared}


@SETTINGS
@given(
    setup=SETUPS,
    loads=st.lists(
        st.tuples(st.integers(0, 2), st.integers(1, 15), st.integers(0, 10), st.booleans()), min_size=1, max_size=8
    ),
    aborts=st.sets(st.integers(0, 7)),
)
def test_preparing_a_step_while_another_runs_changes_nothing(setup, loads, aborts):
    """Tokens, reasons and scores are those of the plain loop. A request that is aborted has the first of them."""

    def serve(overlaps: bool, aborted: Set[int]) -> Collector:
        core, collector = engine(**{**setup, "overlaps": overlaps}), Collector()
        for index, (text, length, max_tokens, looks_back) in enumerate(loads):
            params = {"presence_penalty": float(looks_back), "prompt_logprobs": 0 if text == 1 else None}
            collector.take(core.add(request(f"r{index}", [text] * length, max_tokens, **params)))
        for index in aborted:
            for output in core.step().outputs:
                collector.take(output)
            collector.take(core.abort(f"r{index}"))
            check(core)
        run(core, collector)
        assert core.scheduler.pool.held == 0
        return collector

    plain, overlapped = serve(False, set()), serve(True, aborts)
    assert plain.ended.keys() == overlapped.ended.keys()
    for name in overlapped.ended:
        if overlapped.reason(name) is FinishReason.ABORT:
            assert overlapped.tokens[name] == plain.tokens[name][: len(overlapped.tokens[name])]
        else:
            assert overlapped.reason(name) == plain.reason(name)
            assert overlapped.tokens[name] == plain.tokens[name]
            assert overlapped.prompt_logprobs[name] == plain.prompt_logprobs[name]
