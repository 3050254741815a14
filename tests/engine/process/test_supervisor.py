"""The supervisor knows how long to wait before a restart, and which lives went well; test_restarts.py runs some."""

import asyncio
import errno
from pathlib import Path

import pytest

from octavo.engine.api import EngineStats, FinishReason, FromEngine, Output, Ready, StepOutputs
from octavo.engine.config import EngineConfig
from octavo.engine.process.death import Died
from octavo.engine.process.engine_process import EngineProcess
from octavo.engine.process.supervisor import Life, Restarts, Supervisor
from octavo.engine.startup import machine
from tests.engine.process.support import PATIENCE
from tests.fake_engine import Behaviour, fake_build

READY = Ready(max_model_len=100, max_num_seqs=4, max_waiting=4, description=())


def test_back_off_doubles_up_to_a_limit() -> None:
    assert [Restarts().delay(attempt) for attempt in range(8)] == [0.5, 1, 2, 4, 8, 16, 30, 30]


def ended(reason: FinishReason) -> StepOutputs:
    return StepOutputs((Output("a", finish_reason=reason),), EngineStats())


@pytest.mark.parametrize(
    ("messages", "seconds", "well"),
    [
        ((), 1000, False),
        ((READY,), 9, False),
        ((READY,), 11, True),
        ((READY, ended(FinishReason.STOP)), 1, True),
        ((READY, ended(FinishReason.LENGTH), Died("it was killed")), 1, True),
        ((READY, ended(FinishReason.ABORT), ended(FinishReason.ERROR)), 1, False),
    ],
    ids=["never ready", "short", "long", "stop", "length", "nothing but errors"],
)
def test_a_life_went_well_that_lasted_or_finished_a_request(
    messages: tuple[FromEngine | Died, ...], seconds: float, well: bool
) -> None:
    life = Life()
    for message in messages:
        life.hear(message, 100.0)
    assert Restarts().went_well(life, 100.0 + seconds) is well


def test_a_process_that_the_machine_denies_is_not_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[EngineConfig] = []

    def deny(self: EngineProcess, config: EngineConfig, *arguments: object) -> None:
        asked.append(config)
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(EngineProcess, "__init__", deny)

    async def run() -> str:
        build = fake_build(Behaviour())
        return await Supervisor(EngineConfig(model=""), build, Restarts(), lambda message: None, lambda: False).run()

    assert asyncio.run(run()) == "Too many open files; raise the limit (ulimit -n)."
    assert len(asked) == 1


def test_a_first_life_under_a_limit_is_the_last_unless_it_is_ready(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(machine, "limit_in_force", lambda: "the address space is limited to 2 GiB (ulimit -v)")
    lives = tmp_path / "lives"

    async def run(behaviour: Behaviour) -> str:
        build = fake_build(behaviour)
        return await Supervisor(EngineConfig(model=""), build, Restarts(), lambda message: None, lambda: False).run()

    said = asyncio.run(run(Behaviour(stillborn=(0, 1, 2), lives=lives)))
    assert said == (
        "the engine process ended with status 7 while it started, "
        "and the address space is limited to 2 GiB (ulimit -v): raise the limit, or remove it"
    )
    assert len(lives.read_text().splitlines()) == 1


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
