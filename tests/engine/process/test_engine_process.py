"""An EngineProcess delivers the death of its process last."""

import asyncio

import pytest

from octavo.engine.api import FromEngine, Ready, StepOutputs
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
