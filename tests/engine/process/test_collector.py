"""Outputs reach their reader in order and whole, however slowly it reads, and the end is reached exactly once."""

import asyncio

from octavo.engine.api import FinishReason, Output, Routes, TokenLogprobs
from octavo.engine.process.collector import Collector, merge


def collector_of(*ids: str) -> tuple[Collector, list[str]]:
    abandoned: list[str] = []
    return Collector(ids, abandoned.append), abandoned


async def read_all(collector: Collector) -> list[Output]:
    return [output async for output in collector]


def test_a_reader_that_lags_gets_one_merged_output() -> None:
    collector, abandoned = collector_of("a")
    collector.put(Output("a", (1,), (TokenLogprobs(-0.5),), cached_tokens=16))
    collector.put(Output("a", (2,), (TokenLogprobs(-1.5),)))
    collector.put(Output("a", (3,), (), finish_reason=FinishReason.STOP))
    assert asyncio.run(read_all(collector)) == [
        Output("a", (1, 2, 3), (TokenLogprobs(-0.5), TokenLogprobs(-1.5)), 16, FinishReason.STOP)
    ]
    assert abandoned == []


def test_a_reader_that_keeps_up_gets_each_output() -> None:
    async def run() -> list[Output]:
        collector, _ = collector_of("a", "b")
        reader = asyncio.create_task(read_all(collector))
        for output in (Output("a", (1,)), Output("b", (5,), finish_reason=FinishReason.LENGTH), Output("a", (2,))):
            await asyncio.sleep(0)
            collector.put(output)
            await asyncio.sleep(0)
        collector.put(Output("a", (), finish_reason=FinishReason.STOP))
        return await reader

    outputs = asyncio.run(run())
    assert [output.token_ids for output in outputs] == [(1,), (5,), (2,), ()]


def test_the_choices_of_a_request_end_separately() -> None:
    collector, _ = collector_of("a", "b")
    collector.put(Output("a", (1,), finish_reason=FinishReason.STOP))
    collector.put(Output("b", (2,), finish_reason=FinishReason.STOP))
    collector.put(Output("a", (9,)))  # It comes after the end, and is dropped.
    assert [output.id for output in asyncio.run(read_all(collector))] == ["a", "b"]


def test_an_aborted_request_delivers_nothing_more() -> None:
    collector, abandoned = collector_of("a", "b")
    collector.put(Output("a", (1,)))
    collector.abort("a")
    collector.abort("a")
    collector.put(Output("a", (2,)))
    collector.put(Output("b", (3,), finish_reason=FinishReason.STOP))
    assert [output.token_ids for output in asyncio.run(read_all(collector))] == [(3,)]
    assert abandoned == ["a"]


def test_aborting_the_last_request_wakes_the_reader() -> None:
    async def run() -> list[Output]:
        collector, _ = collector_of("a")
        reader = asyncio.create_task(read_all(collector))
        await asyncio.sleep(0)
        collector.abort("a")
        return await asyncio.wait_for(reader, 60)

    assert asyncio.run(run()) == []


def test_closing_gives_up_only_what_has_not_ended() -> None:
    collector, abandoned = collector_of("a", "b")
    collector.put(Output("a", (1,), finish_reason=FinishReason.STOP))
    collector.close()
    collector.close()
    assert abandoned == ["b"]
    assert asyncio.run(read_all(collector)) == []


def test_merging_keeps_the_error() -> None:
    end = Output("a", finish_reason=FinishReason.ERROR, error="gone")
    assert merge(Output("a", (1,)), end) == Output("a", (1,), finish_reason=FinishReason.ERROR, error="gone")


def test_merging_keeps_the_log_probabilities_of_the_prompt_in_order() -> None:
    first = Output("a", prompt_logprobs=(TokenLogprobs(-1.0), TokenLogprobs(-2.0)))
    second = Output("a", (1,), prompt_logprobs=(TokenLogprobs(-3.0),))
    assert [each.logprob for each in merge(first, second).prompt_logprobs] == [-1.0, -2.0, -3.0]


def test_merging_joins_the_routes_of_consecutive_positions() -> None:
    first, none = Output("a", routes=Routes(3, 2, b"1122", b"aabb")), Output("a")
    second = Output("a", routes=Routes(5, 1, b"33", b"cc"))
    assert merge(merge(first, none), second).routes == Routes(3, 3, b"112233", b"aabbcc")
    assert merge(none, second).routes == second.routes
    assert merge(none, none).routes is None
