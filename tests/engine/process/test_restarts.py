"""An engine process that dies or hangs fails its requests and is started again, unless that would not help."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from octavo.engine.api import FinishReason, Ready
from octavo.engine.client import (
    EngineState,
    Failed,
    Loading,
    Unavailable,
)
from octavo.engine.config import EngineConfig
from octavo.engine.process.client import ProcessClient
from octavo.engine.process.supervisor import Restarts
from octavo.engine.startup.build import build
from octavo.engine.startup.prepare import prepare
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
from tests.fake_engine import CRASH, HANG, HANGS, Behaviour
from tests.tiny import write_tiny_checkpoint


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
    """The test says when a second of the watchdog's has passed."""
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
    """Two restarts are allowed in a row. The engine dies twice, serves, dies twice more, and serves."""

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


@pytest.mark.skipif(sys.platform != "linux", reason="other systems end otherwise when a mapped file is cut off")
def test_a_mapped_file_that_becomes_unreadable_is_not_tried_again(tmp_path: Path) -> None:
    """The engine computes with a file that has been cut off, and then says so, once."""
    states: list[EngineState] = []
    directory = write_tiny_checkpoint(tmp_path)
    config = EngineConfig(str(directory), device="cpu", quantization="int8", threads=1, max_num_batched_tokens=64)
    path = prepare(config, None, lambda progress: None).path

    async def run() -> None:
        client = ProcessClient(config, build, QUICK, states.append)
        client.start()
        try:
            await until_ready(client)
            assert any(str(path) in line for line in states[-1].description)
            os.truncate(path, 0)
            outputs = await outputs_of(client.submit([request("cut off", 5, 6, 7)]))
            assert outputs[-1].finish_reason is FinishReason.ERROR
            await asyncio.wait_for(client.given_up(), PATIENCE)
        finally:
            await client.stop()

    asyncio.run(run())
    assert isinstance(states[-1], Failed) and "(SIGBUS)" in states[-1].error and "octavo prepare" in states[-1].error
    assert not any(isinstance(state, Loading) and state.error for state in states)
