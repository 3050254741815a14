"""Tests each promise of Scheduler by example, with a fake model whose output shows what the cache really held."""

import pytest

from octavo.engine.api import FinishReason
from octavo.engine.schedule.batch import PENDING, Sample
from tests.engine.fakes import VOCAB, Collector, check, continuation, engine, request, run, scores


def generate(core, *requests):
    collector = Collector()
    for each in requests:
        collector.take(core.add(each))
    run(core, collector)
    assert core.scheduler.pool.held == 0
    return collector


def test_a_sequence_generates_and_ends_at_max_tokens():
    core = engine()
    done = generate(core, request("a", [1, 2, 3], 5))
    assert done.tokens["a"] == continuation([1, 2, 3], 5)
    assert done.reason("a") is FinishReason.LENGTH
    assert core.runner.steps == [[("a", 3)], [("a", 1)], [("a", 1)], [("a", 1)], [("a", 1)]]


def test_a_stop_token_is_the_last_of_the_output():
    wanted = continuation([1, 2, 3], 5)
    done = generate(engine(), request("a", [1, 2, 3], 5, stop_token_ids=(wanted[2],)))
    assert done.tokens["a"] == wanted[: wanted.index(wanted[2]) + 1]
    assert done.reason("a") is FinishReason.STOP


def test_the_context_limit_ends_a_sequence():
    done = generate(engine(max_model_len=6), request("a", [1, 2, 3], 50))
    assert (len(done.tokens["a"]), done.reason("a")) == (3, FinishReason.LENGTH)


def test_a_pool_smaller_than_the_context_limit_ends_a_sequence_too():
    done = generate(engine(num_blocks=2, block_size=4), request("a", [1, 2, 3], 50))
    assert (len(done.tokens["a"]), done.reason("a")) == (5, FinishReason.LENGTH)


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "words"),
    [
        ([], 4, "prompt is empty"),
        ([1], -1, "max_tokens"),
        ([1] * 17, 0, "at most 16 fit"),
        ([1] * 16, 1, "at most 15 fit"),
        ([1, VOCAB], 1, "outside of the vocabulary"),
        ([-1], 1, "outside of the vocabulary"),
    ],
)
def test_what_can_never_run_is_refused_with_one_terminal_output(prompt, max_tokens, words):
    core = engine(num_blocks=4, block_size=4)
    refusal = core.add(request("a", prompt, max_tokens))
    assert refusal.finish_reason is FinishReason.ERROR
    assert words in refusal.error
    assert not core.has_work()


def test_an_id_in_use_is_refused():
    core = engine()
    assert core.add(request("a", [1])) is None
    assert "already running" in core.add(request("a", [2])).error


def test_a_long_prompt_is_computed_in_chunks_beside_others():
    core, collector = engine(max_num_batched_tokens=8), Collector()
    core.add(request("short", [5, 6], 8))
    core.step()
    core.add(request("long", range(20), 2))
    run(core, collector)
    assert core.runner.steps[1:4] == [[("short", 1), ("long", 7)]] * 2 + [[("short", 1), ("long", 6)]]
    assert collector.tokens["long"] == continuation(range(20), 2)


def test_an_older_prompt_leaves_a_token_for_each_sequence_that_generates():
    core = engine(max_num_batched_tokens=8, num_blocks=8, enable_prefix_caching=False)
    core.add(request("old", range(20), 8))
    core.add(request("new", [1, 2], 9))
    old = core.scheduler.waiting[0]
    while len(core.scheduler.running) < 2:
        core.step()
    core.scheduler._preempt(old)  # it comes back with its whole prompt to compute, before the other
    core.step()
    core.step()
    assert core.runner.steps[-2:] == [[("old", 7), ("new", 1)]] * 2


def test_no_more_sequences_run_than_tokens_fit_in_a_step():
    core = engine(max_num_batched_tokens=2)
    done = generate(core, *(request(name, [ord(name)], 3) for name in "abcde"))
    assert max(len(rows) for rows in core.runner.steps) == 2
    assert all(done.tokens[name] == continuation([ord(name)], 3) for name in "abcde")


def test_no_more_sequences_run_than_tokens_fit_in_a_step_while_samples_are_under_way():
    core = engine(max_num_batched_tokens=2)
    for name in "abcde":
        core.add(request(name, [ord(name)], 3))
    rows = [row.id for _ in range(3) for row in core.scheduler.schedule().rows]
    assert (rows, len(core.scheduler.running)) == (["a", "b"] * 3, 2)
    assert core.scheduler.schedule().rows == ()  # both have drawn what may be their last


def test_one_that_would_be_preempted_in_the_next_step_waits():
    core = engine(num_blocks=8, block_size=4)
    core.add(request("a", range(16), 8))
    core.step()
    core.add(request("b", range(100, 111), 4))  # just fits beside it, with no block for it to grow into
    core.step()
    assert [seq.request.id for seq in core.scheduler.waiting] == ["b"]


def test_waiting_sequences_start_in_order_of_arrival():
    core = engine(max_num_seqs=1)
    generate(core, *(request(name, [ord(name)], 1) for name in "abc"))
    assert core.runner.steps == [[("a", 1)], [("b", 1)], [("c", 1)]]


def test_a_sequence_that_does_not_fit_is_not_passed():
    core, collector = engine(num_blocks=8), Collector()
    core.add(request("a", range(20), 4))
    core.step()
    core.add(request("big", range(100, 120), 2))
    core.add(request("small", [7], 2))
    core.step()
    assert [seq.request.id for seq in core.scheduler.waiting] == ["big", "small"]
    run(core, collector)
    assert collector.tokens["big"] == continuation(range(100, 120), 2)


def test_a_second_request_finds_the_prefix_of_the_first():
    core = engine(block_size=4)
    generate(core, request("a", range(10), 2))
    before = core.runner.computed
    done = generate(core, request("b", range(10), 2))
    assert done.ended["b"].cached_tokens == 8
    assert done.tokens["b"] == continuation(range(10), 2)
    assert core.runner.computed - before == 2 + 1
    stats = core.scheduler.stats()
    assert (stats.prefix_queries, stats.prefix_hits) == (20, 8)


def test_the_last_token_of_a_cached_prompt_is_computed_again_in_a_private_block():
    core = engine(block_size=4)
    generate(core, request("a", range(8), 3))
    done = generate(core, request("b", range(8), 3))
    assert done.ended["b"].cached_tokens == 4
    assert done.tokens["b"] == continuation(range(8), 3)


def test_outputs_are_found_again_as_part_of_a_longer_prompt():
    core = engine(block_size=4)
    first = generate(core, request("a", range(6), 7)).tokens["a"]
    done = generate(core, request("b", [*range(6), *first, 1], 2))
    assert done.ended["b"].cached_tokens == 12  # the output's last token was never computed


def test_another_salt_finds_nothing():
    core = engine(block_size=4)
    generate(core, request("a", range(10), 2, cache_salt="one"))
    assert generate(core, request("b", range(10), 2, cache_salt="two")).ended["b"].cached_tokens == 0


def test_prefix_caching_can_be_off():
    core = engine(enable_prefix_caching=False)
    generate(core, request("a", range(10), 2))
    assert generate(core, request("b", range(10), 2)).ended["b"].cached_tokens == 0
    assert core.scheduler.stats().prefix_queries == 0


def test_eight_choices_compute_their_prompt_once():
    core = engine(block_size=4, max_num_seqs=9)
    done = generate(core, *(request(f"c{n}", range(41), 3, choice=n) for n in range(8)))
    prompt, tails, decodes = 41, 7 * 1, 8 * 2
    assert core.runner.computed == prompt + tails + decodes
    assert {done.ended[f"c{n}"].cached_tokens for n in range(1, 8)} == {40}


def test_a_sequence_that_waits_for_a_prefix_is_passed():
    core = engine(block_size=4)
    for each in (request("a", range(12), 3), request("same", range(12), 3), request("other", [7, 8], 3)):
        core.add(each)
    core.step()
    assert core.runner.steps == [[("a", 12), ("other", 2)]]
    core.step()
    assert core.runner.steps[1] == [("a", 1), ("same", 4), ("other", 1)]


def test_the_end_of_the_sequence_waited_for_is_no_dead_end():
    core, collector = engine(block_size=4, max_num_batched_tokens=4), Collector()
    core.add(request("a", range(12), 3))
    core.add(request("same", range(12), 3))
    core.step()
    collector.take(core.abort("a"))
    run(core, collector)
    assert collector.tokens["same"] == continuation(range(12), 3)
    assert collector.ended["same"].cached_tokens == 4


def test_the_newest_is_preempted_and_comes_back_where_it_was():
    core = engine(num_blocks=6, block_size=4)
    done = generate(core, *(request(name, [ord(name)] * 3, 16) for name in "abc"))
    assert core.scheduler.stats().preemptions > 0
    assert all(done.tokens[name] == continuation([ord(name)] * 3, 16) for name in "abc")
    ends = {name: max(i for i, rows in enumerate(core.runner.steps) if name in dict(rows)) for name in "abc"}
    assert ends["a"] < ends["b"] < ends["c"]


def test_preemption_does_not_count_as_a_hit():
    core = engine(num_blocks=6, block_size=4)
    done = generate(core, *(request(name, [ord(name)] * 3, 16) for name in "ab"))
    assert core.scheduler.stats().preemptions > 0
    assert {done.ended[name].cached_tokens for name in "ab"} == {0}


def test_abort_frees_a_running_and_a_waiting_sequence():
    core = engine(max_num_seqs=1)
    core.add(request("a", range(9)))
    core.add(request("b", range(9)))
    core.step()
    assert [core.abort(name).finish_reason for name in "ab"] == [FinishReason.ABORT] * 2
    assert core.abort("a") is None
    assert not core.has_work()
    check(core)
    assert core.scheduler.pool.held == 0


def test_a_row_that_is_not_a_number_ends_its_sequence_alone():
    core = engine(block_size=4)
    scheduler = core.scheduler
    core.add(request("bad", range(9)))
    core.add(request("good", [1]))
    batch = scheduler.schedule()
    _, following = core.runner.run(batch)
    bad, good = scheduler.update(batch, [Sample(None), following])
    assert (bad.id, bad.finish_reason, bad.token_ids) == ("bad", FinishReason.ERROR, ())
    assert "not a number" in bad.error
    assert (good.id, good.finish_reason, good.token_ids) == ("good", None, continuation([1], 1))
    collector = Collector()
    run(core, collector)
    assert collector.reason("good") is FinishReason.LENGTH
    assert generate(core, request("again", range(9), 1)).ended["again"].cached_tokens == 0


def test_samples_of_a_sequence_that_ended_meanwhile_are_ignored():
    core = engine()
    core.add(request("a", [1, 2]))
    core.add(request("b", [3, 4]))
    batch = core.scheduler.schedule()
    core.abort("a")
    (output,) = core.scheduler.update(batch, core.runner.run(batch))
    assert (output.id, output.token_ids) == ("b", continuation([3, 4], 1))


def test_a_token_that_is_being_drawn_is_pending_in_the_next_step():
    scheduler = engine(block_size=4).scheduler
    scheduler.add(request("a", [1, 2, 3, 4], 3))
    rows = [row for _ in range(4) for row in scheduler.schedule().rows]
    assert [(row.start, row.tokens, row.output) for row in rows] == [
        (0, (1, 2, 3, 4), 0),
        (4, (PENDING,), 1),
        (5, (PENDING,), 2),
    ]
    assert [len(row.blocks) for row in rows] == [1, 2, 2]


def test_a_block_with_a_pending_token_is_published_when_its_ids_are_known():
    scheduler = engine(block_size=4).scheduler
    scheduler.add(request("a", [1, 2, 3], 9))
    first, second, third = (scheduler.schedule() for _ in range(3))
    (seq,) = scheduler.running
    for batch, token, published in ((first, 7, 0), (second, 8, 1), (third, 9, 1)):
        scheduler.update(batch, [Sample(token)])
        assert seq.published == published
        scheduler.pool.check([seq.blocks])
    assert scheduler.pool.match(seq.hashes) == list(seq.blocks[:1])


def test_a_sample_that_comes_after_the_preemption_counts():
    core = engine(block_size=4)
    scheduler, collector = core.scheduler, Collector()
    core.add(request("a", range(6), 3))
    batch = scheduler.schedule()
    samples = core.runner.run(batch)
    scheduler._preempt(scheduler.running[0])
    for output in scheduler.update(batch, samples):
        collector.take(output)
    check(core)
    run(core, collector)
    assert collector.tokens["a"] == continuation(range(6), 3)


def test_a_token_that_comes_twice_counts_once():
    core = engine(block_size=4)
    scheduler, collector = core.scheduler, Collector()
    core.add(request("a", range(6), 3))
    first = scheduler.schedule()
    early = core.runner.run(first)
    scheduler._preempt(scheduler.running[0])
    second = scheduler.schedule()  # computes the prompt again, for the same token
    late = core.runner.run(second)
    for output in (*scheduler.update(first, early), *scheduler.update(second, late)):
        collector.take(output)
    check(core)
    run(core, collector)
    assert collector.tokens["a"] == continuation(range(6), 3)


def test_a_step_without_work_only_tells_the_stats():
    core = engine()
    core.add(request("a", [1]))
    core.abort("a")
    step = core.step()
    assert (step.outputs, step.stats.running) == ((), 0)


def test_stats():
    core = engine(num_blocks=8, block_size=4, max_num_seqs=1)
    core.add(request("a", range(7)))
    core.add(request("b", [1]))
    stats = core.step().stats
    assert (stats.running, stats.waiting, stats.kv_cache_usage) == (1, 1, 2 / 8)


@pytest.mark.parametrize("length", [1, 5, 16])
def test_without_tokens_to_generate_the_prompt_is_computed_and_nothing_follows(length):
    core, collector = engine(num_blocks=4, block_size=4, max_num_batched_tokens=3), Collector()
    prompt = list(range(length))
    assert core.add(request("a", prompt, 0, prompt_logprobs=0)) is None
    run(core, collector)
    assert (collector.tokens["a"], collector.reason("a")) == ((), FinishReason.LENGTH)
    assert collector.prompt_logprobs["a"] == scores(prompt)
    assert core.runner.computed == length


def test_a_prompt_that_is_scored_takes_nothing_from_the_cache_and_leaves_its_own():
    core, collector = engine(), Collector()
    for name, wanted in (("cold", None), ("scored", 0), ("warm", None)):
        core.add(request(name, range(12), 1, prompt_logprobs=wanted))
        run(core, collector)
    assert [collector.ended[name].cached_tokens for name in ("cold", "scored", "warm")] == [0, 0, 8]
    assert collector.prompt_logprobs == {"cold": (), "scored": scores(range(12)), "warm": ()}
