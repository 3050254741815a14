"""When an engine process is started again, and what its end is called. Lives and deaths are in test_client.py."""

import asyncio

import pytest

from engine.api import FromEngine, Ready, StepOutputs
from engine.config import EngineConfig
from engine.supervisor import Died, EngineProcess, Restarts
from tests.fake_engine import Behaviour, fake_build

PATIENCE = 60  # seconds; the machine may be busy


def test_back_off_doubles_up_to_a_limit() -> None:
    assert [Restarts().delay(attempt) for attempt in range(8)] == [0.5, 1, 2, 4, 8, 16, 30, 30]


@pytest.mark.parametrize(
    ("stillborn", "fatal", "reason"),
    [((0,), None, "ended with status 7"), ((), "Give another.", "ended with status 0")],
    ids=["crash", "fatal"],
)
def test_death_is_the_last_that_is_delivered(stillborn: tuple[int, ...], fatal: str | None, reason: str) -> None:
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
