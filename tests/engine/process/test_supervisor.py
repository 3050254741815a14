"""When an engine process is started again, and what its end is called. Lives and deaths are in test_client.py."""

import asyncio
import sys

import pytest

from octavo.engine.api import FromEngine, Ready, StepOutputs
from octavo.engine.config import EngineConfig
from octavo.engine.process import engine_process
from octavo.engine.process.death import Died
from octavo.engine.process.engine_process import EngineProcess
from octavo.engine.process.supervisor import Restarts, Supervisor
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


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_cancelled_while_it_buries_a_process_it_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        build = fake_build(Behaviour(stillborn=(0,)))
        one = Supervisor(EngineConfig(model=""), build, Restarts(), lambda message: None, lambda: False)
        supervision = asyncio.create_task(one.run())
        exited = EngineProcess.exited

        async def exited_and_cancelled(process: EngineProcess) -> str:
            reason = await exited(process)
            asyncio.get_running_loop().call_soon(supervision.cancel)
            return reason

        monkeypatch.setattr(EngineProcess, "exited", exited_and_cancelled)
        await asyncio.wait([supervision], timeout=PATIENCE)
        assert supervision.cancelled() and one.pid is None

    asyncio.run(run())
