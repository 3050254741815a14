"""An EngineProcess delivers the death of its process last."""

import asyncio
import os

import pytest

from octavo.engine.api import Fatal, FromEngine, Ready, StepOutputs
from octavo.engine.config import EngineConfig
from octavo.engine.process import engine_process
from octavo.engine.process.death import Died
from octavo.engine.process.engine_process import EngineProcess
from tests.engine.process.support import PATIENCE
from tests.fake_engine import Behaviour, fake_build


@pytest.mark.parametrize(
    ("stillborn", "fatal", "reason"),
    [((0,), None, "ended with status 7"), ((), "Give another.", "ended with status 0")],
    ids=["crash", "fatal"],
)
def test_death_is_the_last_that_is_delivered(
    monkeypatch: pytest.MonkeyPatch, stillborn: tuple[int, ...], fatal: str | None, reason: str
) -> None:
    monkeypatch.setattr(engine_process, "EXIT_TIME", PATIENCE)

    async def run() -> list[FromEngine | Died]:
        delivered: list[FromEngine | Died] = []
        build = fake_build(Behaviour(stillborn=stillborn, fatal=fatal))
        process = EngineProcess(EngineConfig(model=""), build, delivered.append)
        assert reason in await asyncio.wait_for(process.exited(), PATIENCE)
        await process.stop(PATIENCE)
        return delivered

    delivered = asyncio.run(run())
    last = delivered[-1]
    assert isinstance(last, Died)
    assert reason in last.reason
    assert not any(isinstance(message, Died | Ready | StepOutputs) for message in delivered[:-1])


@pytest.mark.skipif(not hasattr(os, "waitid"), reason="this system cannot wait for a process and leave it to others")
def test_a_message_that_comes_while_the_process_dies_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader finds nothing in the pipe; then the process sends its last message and ends; then the reader looks."""

    def has_ended(pid: int) -> bool:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT) is not None

    monkeypatch.setattr(engine_process, "WATCH_INTERVAL", 0)
    monkeypatch.setattr(engine_process, "has_lost_its_memory", has_ended)

    async def run() -> list[FromEngine | Died]:
        delivered: list[FromEngine | Died] = []
        build = fake_build(Behaviour(fatal="Give another."))
        process = EngineProcess(EngineConfig(model=""), build, delivered.append)
        await asyncio.wait_for(process.exited(), PATIENCE)
        await process.stop(PATIENCE)
        return delivered

    assert Fatal("Give another.") in asyncio.run(run())
