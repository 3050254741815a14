"""Tests ProcessClient against a real engine process: states, admission, outputs, drain and stop."""

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from octavo.engine.api import EngineStats, ExpertUse, FinishReason, Grammar, Output, Ready, StepOutputs
from octavo.engine.client import (
    BadGrammar,
    Draining,
    EngineState,
    Loading,
    QueueFull,
    TooLong,
    Unavailable,
    UnknownToken,
)
from octavo.engine.config import EngineConfig
from octavo.engine.process.client import ProcessClient
from octavo.engine.process.death import Died
from octavo.engine.process.supervisor import Restarts
from tests.engine.process.support import (
    FOREVER,
    PATIENCE,
    QUICK,
    outputs_of,
    request,
    running,
    tokens_of,
    until,
    until_ready,
)
from tests.fake_engine import REFUSED, VOCAB_SIZE, Behaviour, fake_build
from tests.server.vocab import byte_level


def test_the_use_of_experts_reaches_whoever_asks_also_from_the_next_engine() -> None:
    client = ProcessClient(EngineConfig("nowhere"), fake_build(Behaviour()))
    first, second = ExpertUse("a", 1, b"", b""), ExpertUse("", 2, b"", b"")
    told: list[list[ExpertUse]] = [[], []]
    for each in told:
        client.on_expert_use(each.append)
    client._receive(StepOutputs((), EngineStats(), (first, second)))
    client._receive(Died("it fell"))
    client._receive(StepOutputs((), EngineStats(), (first,)))
    assert told == [[first, second, first]] * 2


def test_states_from_start_to_stop() -> None:
    states: list[EngineState] = []

    async def run() -> None:
        async with running(Behaviour(load_seconds=0.5), watch=states.append) as client:
            assert client.state == Loading()
            assert client.ready is None
            with pytest.raises(Unavailable, match="loading"):
                client.submit([request("a", 1)])
            await until_ready(client)
            assert client.ready is client.state

    asyncio.run(run())
    progress = [state.progress.done for state in states if isinstance(state, Loading) and state.progress]
    assert progress == sorted(progress)
    assert progress[0] == 0
    assert progress[-1] == 10
    assert isinstance(states[-2], Ready)
    assert states[-1] == Draining()


def test_requests_run_together_and_end_once() -> None:
    async def run() -> list[list[Output]]:
        async with running(Behaviour()) as client:
            await until_ready(client)
            generations = [client.submit([request(f"r{i}", 10 * i, max_tokens=5)]) for i in range(8)]
            results = await asyncio.gather(*map(outputs_of, generations))
            assert client.open_requests == 0
            return results

    for index, outputs in enumerate(asyncio.run(run())):
        assert tokens_of(outputs) == [10 * index + 1 + step for step in range(5)]
        assert [output.finish_reason for output in outputs][-1] is FinishReason.LENGTH
        assert all(output.finish_reason is None for output in outputs[:-1])


def test_a_refusal_by_the_engine_is_a_terminal_output() -> None:
    async def run() -> list[Output]:
        async with running(Behaviour()) as client:
            await until_ready(client)
            return await outputs_of(client.submit([request("a", REFUSED)]))

    (output,) = asyncio.run(run())
    assert (output.finish_reason, output.error) == (FinishReason.ERROR, "refused by the engine")


def test_admission_refuses_before_anything_is_sent() -> None:
    async def run() -> None:
        async with running(Behaviour(max_model_len=100, max_num_seqs=2, max_waiting=1)) as client:
            await until_ready(client)
            with pytest.raises(TooLong, match="101 tokens"):
                client.submit([request("long", *range(1, 92), max_tokens=10)])
            with pytest.raises(TooLong, match="3 sequences"):
                client.submit([request(f"n{i}", 1) for i in range(4)])
            with pytest.raises(UnknownToken, match="the token 1000000000, and the model has no token beyond 999999999"):
                client.submit([request("unknown", 5, VOCAB_SIZE, 6)])
            first = client.submit([request("a", 1, max_tokens=99), request("b", 1, max_tokens=99)])
            with pytest.raises(QueueFull):
                client.submit([request("c", 1), request("d", 1)])
            assert client.open_requests == 2
            second = client.submit([request("c", 1)])
            assert len(tokens_of(await outputs_of(first))) == 198
            assert len(tokens_of(await outputs_of(second))) == 3

    asyncio.run(run())


def test_giving_up_frees_the_sequence_running_or_queued() -> None:
    async def run() -> None:
        async with running(Behaviour(step_seconds=0.001, max_num_seqs=1, max_model_len=2 * FOREVER)) as client:
            await until_ready(client)
            first = client.submit([request("a", 1, max_tokens=FOREVER)])
            queued = client.submit([request("b", 1, max_tokens=FOREVER)])
            await until(lambda: (client.stats.running, client.stats.waiting) == (1, 1))
            queued.close()
            await until(lambda: (client.stats.running, client.stats.waiting) == (1, 0))
            first.abort("a")
            await until(lambda: client.stats.running == 0)
            assert client.open_requests == 0
            assert await outputs_of(queued) == []

    asyncio.run(run())


def test_drain_lets_open_requests_end_and_takes_no_new_ones() -> None:
    async def run() -> None:
        async with running(Behaviour(step_seconds=0.005)) as client:
            await until_ready(client)
            generation = client.submit([request("a", 1, max_tokens=50)])
            drain = asyncio.create_task(client.drain(PATIENCE))
            await until(lambda: client.state == Draining())
            with pytest.raises(Unavailable, match="shutting down"):
                client.submit([request("b", 1)])
            outputs = await outputs_of(generation)
            assert outputs[-1].finish_reason is FinishReason.LENGTH
            assert len(tokens_of(outputs)) == 50
            await asyncio.wait_for(drain, PATIENCE)

    asyncio.run(run())


def test_drain_fails_what_is_left_after_the_timeout() -> None:
    async def run() -> None:
        async with running(Behaviour(step_seconds=0.001, max_model_len=2 * FOREVER)) as client:
            await until_ready(client)
            generations = [client.submit([request(f"r{i}", 1, max_tokens=FOREVER)]) for i in range(6)]
            await client.drain(0.05)
            for outputs in await asyncio.gather(*map(outputs_of, generations)):
                assert outputs[-1].finish_reason is FinishReason.ERROR
                assert outputs[-1].error == "The server is shutting down."

    asyncio.run(run())


@pytest.mark.parametrize("moment", ["loading", "restarting", "running", "stopped dead"])
def test_stop_leaves_no_process(moment: str, tmp_path: Path) -> None:
    lives = tmp_path / "lives"
    behaviour = Behaviour(
        lives=lives,
        load_seconds=10**6 if moment == "loading" else 0,
        stillborn=(0,) if moment == "restarting" else (),
        step_seconds=0.001,
        max_model_len=2 * FOREVER,
    )

    async def run() -> None:
        async with running(behaviour, Restarts(first_delay=10**6)) as client:
            if moment == "restarting":
                await until(lambda: isinstance(client.state, Loading) and client.state.error is not None)
            elif moment == "loading":
                await until(lives.exists)
            else:
                await until_ready(client)
                client.submit([request("a", 1, max_tokens=FOREVER)])
                await until(lambda: client.stats.running == 1)
            if moment == "stopped dead":
                os.kill(client.engine_pid or 0, signal.SIGSTOP)

    asyncio.run(run())
    for pid in map(int, lives.read_text().split()):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_request_id_in_use_is_a_mistake_of_the_caller() -> None:
    async def run() -> Any:
        async with running(Behaviour(step_seconds=0.01)) as client:
            await until_ready(client)
            client.submit([request("a", 1, max_tokens=100)])
            with pytest.raises(ValueError, match="in use"):
                client.submit([request("a", 1)])

    asyncio.run(run())


def test_grammars_are_tried_before_anything_is_submitted(tmp_path: Path) -> None:
    byte_level().backend.save(str(tmp_path / "tokenizer.json"))

    async def scenario() -> None:
        client = ProcessClient(EngineConfig(model=str(tmp_path)), fake_build(Behaviour()), QUICK)
        client.start()
        try:
            with pytest.raises(Unavailable, match="loading"):
                await client.check(Grammar("regex", "a+"))
            await until_ready(client)
            await client.check(Grammar("regex", "a+"))
            with pytest.raises(BadGrammar, match='not supported: "not"'):
                await client.check(Grammar("json", '{"not": {}}'))
        finally:
            await client.stop()
        with pytest.raises(Unavailable, match="shutting down"):
            await client.check(Grammar("regex", "a+"))

    asyncio.run(scenario())
