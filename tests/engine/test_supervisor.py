"""When an engine process is started again, and what its end is called. Lives and deaths are in test_client.py."""

import asyncio
import os
import subprocess
import sys
import time

import pytest

from engine import supervisor
from engine.api import FromEngine, Ready, StepOutputs
from engine.config import EngineConfig
from engine.supervisor import Died, EngineProcess, Restarts, has_lost_its_memory
from tests.fake_engine import Behaviour, fake_build

PATIENCE = 60  # seconds; the machine may be busy


def test_back_off_doubles_up_to_a_limit() -> None:
    assert [Restarts().delay(attempt) for attempt in range(8)] == [0.5, 1, 2, 4, 8, 16, 30, 30]


@pytest.mark.parametrize(
    ("stillborn", "fatal", "reason"),
    [((0,), None, "ended with status 7"), ((), "Give another.", "ended with status 0")],
    ids=["crash", "fatal"],
)
def test_death_is_the_last_that_is_delivered(
    monkeypatch: pytest.MonkeyPatch, stillborn: tuple[int, ...], fatal: str | None, reason: str
) -> None:
    monkeypatch.setattr(supervisor, "EXIT_TIME", PATIENCE)

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


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_a_dying_process_is_told_from_a_silent_one() -> None:
    assert not has_lost_its_memory(os.getpid())
    with subprocess.Popen(["sleep", "1000"]) as process:
        assert not has_lost_its_memory(process.pid)
        process.kill()
        deadline = time.monotonic() + PATIENCE
        while not has_lost_its_memory(process.pid):  # it is not waited for yet, and so does not vanish
            assert time.monotonic() < deadline
    assert not has_lost_its_memory(process.pid)
