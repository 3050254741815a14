"""ProcessClient against a real engine process: admission, death, restart, drain and stop."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from octavo.engine.api import FinishReason, Grammar, Output, Ready, Request, SamplingParams
from octavo.engine.client import (
    BadGrammar,
    Draining,
    EngineState,
    Failed,
    Generation,
    Loading,
    QueueFull,
    TooLong,
    Unavailable,
)
from octavo.engine.config import EngineConfig
from octavo.engine.process.client import ProcessClient
from octavo.engine.process.supervisor import Restarts
from octavo.engine.startup.build import build
from tests.fake_engine import CRASH, HANG, HANGS, REFUSED, Behaviour, fake_build
from tests.server.vocab import byte_level
from tests.tiny import write_tiny_checkpoint

PATIENCE = 60  # seconds; the machine may be busy
QUICK = Restarts(first_delay=0.01, longest_delay=0.02)
FOREVER = 10**9


def request(name: str, *prompt: int, max_tokens: int = 3) -> Request:
    return Request(name, prompt, SamplingParams(max_tokens=max_tokens))


@asynccontextmanager
async def running(
    behaviour: Behaviour, restarts: Restarts = QUICK, watch: Callable[[EngineState], None] | None = None
) -> AsyncIterator[ProcessClient]:
    client = ProcessClient(EngineConfig(model=""), fake_build(behaviour), restarts, watch)
    client.start()
    try:
        yield client
    finally:
        await client.stop()
        assert client.engine_pid is None


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.005)


async def until_ready(client: ProcessClient) -> None:
    await until(lambda: isinstance(client.state, Ready))


async def outputs_of(generation: Generation) -> list[Output]:
    async with asyncio.timeout(PATIENCE):
        return [output async for output in generation]


def tokens_of(outputs: Iterable[Output]) -> list[int]:
    return [token for output in outputs for token in output.token_ids]


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


@pytest.mark.parametrize("kill", [True, False], ids=["killed", "a step that raises"])
def test_death_fails_every_open_request_and_it_serves_again(kill: bool) -> None:
    states: list[EngineState] = []

    async def run() -> None:
        behaviour = Behaviour(step_seconds=0.001, max_model_len=2 * FOREVER, load_seconds=0.2, max_num_seqs=8)
        async with running(behaviour, watch=states.append) as client:
            await until_ready(client)
            open_ones = [client.submit([request(f"r{i}", 1, max_tokens=FOREVER)]) for i in range(6)]
            await until(lambda: client.stats.running == 6)
            assert client.engine_pid is not None
            if kill:
                os.kill(client.engine_pid, signal.SIGKILL)
            else:
                open_ones.append(client.submit([request("crash", CRASH)]))
            for outputs in await asyncio.gather(*map(outputs_of, open_ones)):
                assert outputs[-1].finish_reason is FinishReason.ERROR
                assert "died" in str(outputs[-1].error)
            assert client.open_requests == 0
            assert client.stats.running == 0
            assert isinstance(client.state, Loading)
            assert client.ready is not None, "the bounds outlive the process"
            with pytest.raises(Unavailable, match="being restarted"):
                client.submit([request("late", 1)])
            await until_ready(client)
            assert tokens_of(await outputs_of(client.submit([request("again", 1)]))) == [2, 3, 4]

    asyncio.run(run())
    errors = [state.error for state in states if isinstance(state, Loading) and state.error]
    assert ("killed by SIGKILL" if kill else "status 1") in " ".join(errors)


def test_a_step_that_never_ends_is_a_death(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A second of the watchdog's passes whenever the test says so."""
    states: list[EngineState] = []

    async def run() -> None:
        seconds = asyncio.Semaphore(0)
        monkeypatch.setattr("octavo.engine.process.watchdog.sleep", lambda _: seconds.acquire())
        async with running(Behaviour(lives=tmp_path / "lives"), watch=states.append) as client:
            await until_ready(client)
            hanging = client.submit([request("a", HANG), request("b", 1)])
            await until((tmp_path / HANGS).exists)
            for _ in range(EngineConfig(model="").watchdog_timeout + 1):
                seconds.release()
            for output in (await outputs_of(hanging))[-2:]:
                assert output.finish_reason is FinishReason.ERROR
                assert "died" in str(output.error)
            assert isinstance(client.state, Loading)
            await until_ready(client)
            assert tokens_of(await outputs_of(client.submit([request("again", 1)]))) == [2, 3, 4]

    asyncio.run(run())
    (error,) = {state.error for state in states if isinstance(state, Loading) and state.error}
    assert error == "a step of the engine has taken more than 300 s (--watchdog-timeout), and its process was ended"
    assert "in hang" in capfd.readouterr().err, "where it hung is on stderr"


def test_it_gives_up_after_restarts_that_fail_in_a_row(tmp_path: Path) -> None:
    lives = tmp_path / "lives"

    async def run() -> EngineState:
        async with running(Behaviour(lives=lives, stillborn=tuple(range(100)))) as client:
            await asyncio.wait_for(client.given_up(), PATIENCE)
            return client.state

    state = asyncio.run(run())
    assert isinstance(state, Failed)
    assert "status 7" in state.error
    assert "5 restarts" in state.error
    assert len(lives.read_text().splitlines()) == 6


def test_a_life_that_went_well_starts_the_count_anew(tmp_path: Path) -> None:
    """Two restarts are allowed in a row; the engine dies twice, serves, dies twice more, and serves."""

    async def run() -> EngineState:
        behaviour = Behaviour(lives=tmp_path / "lives", stillborn=(0, 1, 3))
        async with running(behaviour, Restarts(attempts=2, first_delay=0.01)) as client:
            for _ in range(2):
                await until_ready(client)
                await outputs_of(client.submit([request("a", 1)]))
                assert client.engine_pid is not None
                os.kill(client.engine_pid, signal.SIGKILL)
                await until(lambda: not isinstance(client.state, Ready))
            await until_ready(client)
            return client.state

    assert isinstance(asyncio.run(run()), Ready)


def test_a_fatal_error_is_not_tried_again(tmp_path: Path) -> None:
    lives = tmp_path / "lives"
    states: list[EngineState] = []

    async def run() -> None:
        async with running(Behaviour(lives=lives, fatal="Give another directory."), watch=states.append) as client:
            await asyncio.wait_for(client.given_up(), PATIENCE)

    asyncio.run(run())
    assert states[-1] == Failed("Give another directory.")
    assert not any(isinstance(state, Loading) and state.error for state in states)
    assert len(lives.read_text().splitlines()) == 1


def test_what_the_real_start_refuses_is_not_tried_again(tmp_path: Path) -> None:
    states: list[EngineState] = []

    async def run() -> None:
        config = EngineConfig(str(write_tiny_checkpoint(tmp_path)), device="abacus")
        client = ProcessClient(config, build, QUICK, states.append)
        client.start()
        try:
            await asyncio.wait_for(client.given_up(), PATIENCE)
        finally:
            await client.stop()

    asyncio.run(run())
    assert states == [Failed("The device 'abacus' is unknown; use auto, cpu or cuda.")]


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
