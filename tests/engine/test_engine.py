"""Tests the overlapped loop: when steps are launched and collected, and that rows launched in vain do no harm."""

from functools import partial
from itertools import count, pairwise

import pytest

from octavo.engine import engine as module
from octavo.engine.api import ExpertUse, FinishReason
from octavo.engine.engine import Engine
from octavo.engine.schedule.batch import PENDING, Batch, Sample
from octavo.engine.schedule.scheduler import Scheduler
from tests.engine.fakes import Collector, FakeRunner, FakeStep, check, continuation, engine, request, run


class Diary(FakeRunner):
    """A Diary notes what it is asked for. The rows of `broken` draw no token."""

    def __init__(self, block_size: int = 4, broken: tuple[str, ...] = ()) -> None:
        super().__init__(block_size, overlaps=True)
        self.broken = broken
        self.notes: list[str] = []
        self.batches: list[Batch] = []

    def launch(self, batch: Batch, before: FakeStep | None = None) -> FakeStep:
        self.batches.append(batch)
        self.notes.append(f"launch {len(self.batches)}")
        return super().launch(batch, before)

    def collect(self, step: FakeStep) -> list[Sample]:
        self.notes.append(f"collect {self.batches.index(step.batch) + 1}")
        return super().collect(step)

    def run(self, batch: Batch) -> list[Sample]:
        samples = super().run(batch)
        return [Sample(None) if row.id in self.broken else each for row, each in zip(batch.rows, samples, strict=True)]


def overlapped(broken: tuple[str, ...] = (), num_blocks: int = 64, **changes) -> tuple[Engine, Diary]:
    plain: Scheduler = engine(num_blocks, **changes).scheduler
    runner = Diary(plain.pool.block_size, broken)
    return Engine(plain, runner), runner


def test_a_step_is_launched_before_the_one_before_it_is_collected():
    core, runner = overlapped()
    collector = Collector()
    core.add(request("a", [1, 2, 3], 4))
    run(core, collector)
    assert collector.tokens["a"] == continuation([1, 2, 3], 4)
    assert runner.notes == [
        "launch 1",
        *("launch 2", "collect 1"),
        *("launch 3", "collect 2"),
        *("launch 4", "collect 3"),
        "collect 4",
    ]
    assert [row.tokens for batch in runner.batches for row in batch.rows] == [(1, 2, 3), *[(PENDING,)] * 3]


def test_on_a_runner_that_computes_at_once_nothing_is_pending():
    core = engine()
    core.add(request("a", [1, 2, 3], 4))
    (output,) = core.step().outputs
    assert output.token_ids == continuation([1, 2, 3], 1)


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "reason"), [([1, 2, 3], 4, FinishReason.LENGTH), ([1] * 253, 9, FinishReason.LENGTH)]
)
def test_nothing_is_computed_behind_the_last_token(prompt, max_tokens, reason):
    (core, runner), collector = overlapped(max_num_batched_tokens=256), Collector()
    core.add(request("a", prompt, max_tokens))
    run(core, collector)
    assert collector.reason("a") is reason
    assert runner.computed == len(prompt) + len(collector.tokens["a"]) - 1


def test_a_row_behind_a_stop_token_is_ignored():
    (core, runner), collector = overlapped(), Collector()
    wanted = continuation([1, 2, 3], 3)
    core.add(request("a", [1, 2, 3], 9, stop_token_ids=wanted[-1:]))
    run(core, collector)
    assert (collector.tokens["a"], collector.reason("a")) == (wanted, FinishReason.STOP)
    assert runner.computed == 3 + 2 + 1  # one token was computed in vain


def test_blocks_that_an_ended_sequence_still_writes_to_serve_their_next_owner():
    """The pool is full, so the next step takes the freed blocks, and writes to them after the late write."""
    (core, runner), collector = overlapped(num_blocks=3), Collector()
    stop = continuation([1] * 7, 2)[-1:]
    core.add(request("a", [1] * 7, 5, stop_token_ids=stop))
    core.add(request("b", [2] * 9, 3))
    run(core, collector)
    late = next(row for batch in runner.batches for row in batch.rows if row.id == "a" and row.end == 9)
    (first, *_) = (row for batch in runner.batches for row in batch.rows if row.id == "b")
    assert late.blocks[-1] in first.blocks
    assert collector.tokens == {"a": continuation([1] * 7, 2), "b": continuation([2] * 9, 3)}


@pytest.mark.parametrize(("length", "tokens"), [(5, 4), (6, 3), (7, 2)])
def test_the_blocks_of_one_that_ends_spare_another_its_preemption(length, tokens):
    """Each needs a block for its next token, one block is free, and the step under way draws a stop token."""
    (core, runner), collector = overlapped(num_blocks=4), Collector()
    stop = continuation([1] * 4, tokens)[-1:]
    core.add(request("a", [1] * 4, 9, stop_token_ids=stop))
    core.add(request("b", [2] * length, 9))
    run(core, collector)
    assert core.scheduler.stats().preemptions == 0
    assert collector.tokens == {"a": continuation([1] * 4, tokens), "b": continuation([2] * length, 9)}
    assert any(first.startswith("launch") and second.startswith("launch") for first, second in pairwise(runner.notes))


def test_what_is_published_is_never_written_late():
    """The stop token fills a block. The late row writes to that block, so it must not be found by its hash."""
    (core, _), collector = overlapped(), Collector()
    text = continuation([1] * 6, 2)
    core.add(request("a", [1] * 6, 9, stop_token_ids=text[-1:]))
    run(core, collector)
    core.add(request("b", [*[1] * 6, *text, 5], 2))
    run(core, collector)
    assert collector.ended["b"].cached_tokens == 4
    assert collector.tokens["b"] == continuation([*[1] * 6, *text, 5], 2)


def test_an_abort_while_a_step_is_under_way_leaves_it_to_be_collected():
    core, runner = overlapped()
    core.add(request("a", [1, 2, 3], 4))
    core.step()
    assert core.abort("a") is not None
    assert core.has_work() and core.scheduler.pool.held == 0
    assert core.step().outputs == () and not core.has_work()
    assert runner.notes == ["launch 1", "collect 1"]


def test_a_row_that_is_not_a_number_ends_its_request_alone():
    (core, _), collector = overlapped(broken=("bad",)), Collector()
    core.add(request("bad", range(9), 4))
    core.add(request("good", [1], 4))
    run(core, collector)
    assert (collector.reason("bad"), collector.tokens["bad"]) == (FinishReason.ERROR, ())
    assert (collector.reason("good"), collector.tokens["good"]) == (FinishReason.LENGTH, continuation([1], 4))


@pytest.mark.parametrize("params", [{"repetition_penalty": 1.5}, {"prompt_logprobs": 0}])
def test_a_step_whose_samples_the_host_needs_is_collected_at_once(params):
    (core, runner), collector = overlapped(), Collector()
    core.add(request("needs", [1, 2, 3], 3, **params))
    core.add(request("free", [4], 3))
    run(core, collector)
    assert runner.notes[:3] == ["launch 1", "collect 1", "launch 2"]
    for row in (row for batch in runner.batches for row in batch.rows if row.id == "needs"):
        assert "repetition_penalty" not in params or PENDING not in row.tokens
    assert collector.tokens == {"needs": continuation([1, 2, 3], 3), "free": continuation([4], 3)}


@pytest.mark.parametrize("steps", [1, 2])
def test_one_that_is_preempted_while_it_draws_a_token_gets_it_all_the_same(steps):
    """If two steps were made, that token is its last one."""
    (core, _), collector = overlapped(enable_prefix_caching=False), Collector()
    core.add(request("a", [1, 2, 3], 2))
    for _ in range(steps):
        for output in core.step().outputs:
            collector.take(output)
    core.scheduler._preempt(core.scheduler.running[0])
    check(core)
    run(core, collector)
    assert collector.tokens["a"] == continuation([1, 2, 3], 2)


def test_eight_choices_compute_their_prompt_once_here_too():
    (core, runner), collector = overlapped(max_num_seqs=9, max_num_batched_tokens=64), Collector()
    for n in range(8):
        core.add(request(f"c{n}", range(41), 3, choice=n))
    run(core, collector)
    assert runner.computed == 41 + 7 * 1 + 8 * 2
    assert {collector.ended[f"c{n}"].cached_tokens for n in range(1, 8)} == {40}


def test_only_grammars_penalties_and_scores_are_awaited():
    core = engine()
    core.add(request("a", [1, 2], 4, logprobs=2, min_tokens=2, logit_bias=((1, 1.0),), top_p=0.5))
    assert not core.scheduler.schedule().must_be_awaited


def test_requests_whose_grammars_are_ready_are_taken_in_as_time_allows(monkeypatch):
    """Each of them costs some time; those that are not taken come with the next steps, in their order."""
    core, _ = overlapped()
    ready = [request(f"r{n}", [n, 1], 2) for n in range(7)]
    ticks = count()

    def compiled(seconds):
        while ready:
            yield ready.pop(0), None

    monkeypatch.setattr(core.runner.grammars, "compiled", compiled)
    monkeypatch.setattr(module, "monotonic", lambda: next(ticks) * module.INTAKE_SECONDS * 0.49)
    monkeypatch.setattr(module, "COMPILE_WAIT", 0.0)
    left = []
    while ready:
        core.step()
        left.append(len(ready))
    assert left == [4, 1, 0]


class Counting(Diary):
    """Counts the tokens that were collected since the use of experts was last asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = 0

    def collect(self, step: FakeStep) -> list[Sample]:
        self.tokens += sum(len(row.tokens) for row in step.batch.rows)
        return super().collect(step)

    def expert_use(self) -> tuple[ExpertUse, ...]:
        told, self.tokens = self.tokens, 0
        return (ExpertUse("", told, b"", b""),) if told else ()


def test_the_use_of_experts_is_told_once_a_second(monkeypatch):
    core, now = Engine(engine().scheduler, Counting()), iter(count(0.125, 0.125))
    core.add(request("a", [1, 2, 3], 200))
    told = []
    for _ in range(32):
        monkeypatch.setattr(module, "monotonic", partial(float, next(now)))
        told.append(sum(use.tokens for use in core.step().expert_use))
    assert [index for index, tokens in enumerate(told) if tokens] == [7, 15, 23, 31]
    assert told[15] == 8


@pytest.mark.parametrize("leaves", [False, True], ids=["its end", "an abort"])
def test_the_end_of_a_request_leaves_no_use_behind(monkeypatch, leaves):
    monkeypatch.setattr(module, "monotonic", lambda: 0.0)
    core, told = Engine(engine().scheduler, Counting()), []
    core.add(request("a", [1, 2, 3], 5))
    core.add(request("b", [4, 5], 9))
    for _ in range(30):
        step = core.step()
        told.append(sum(use.tokens for use in step.expert_use))
        if leaves:
            core.abort("a")
            core.abort("b")
        assert told[-1] or not any(output.finish_reason for output in step.outputs)
    assert sum(told) == core.runner.computed
