"""What a run goes on with when something fails, and what it keeps of that."""

import pytest
import torch

from benchmarks.common.figures import Spread
from benchmarks.gpu.inputs import SMALL
from benchmarks.gpu.run import KINDS, Run, kinds_of
from benchmarks.gpu.table import Ceilings, Measured
from octavo.model.weights.precision import SHORT

CPU = torch.device("cpu")


@pytest.fixture
def run() -> Run:
    return Run(CPU, {}, SMALL, ("bf16",), (1,), {}, Ceilings(1.0, 1.0, 1.0))


def test_a_failure_is_kept_and_the_rest_goes_on(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    for count in (1, 0):
        with run.attempt(f"1 / {count}"):
            run.add(Measured("division", f"by {count}", None, Spread.over([1 / count])))
    assert run.failures == {"1 / 0": "ZeroDivisionError: division by zero"}
    assert [row.name for row in run.rows] == ["by 1"]
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_a_wrong_result_is_told_at_once(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    for error in (0.001, float("nan")):
        run.check("sum", error, 0.01)
    assert [check.passed for check in run.checks] == [True, False]
    assert capsys.readouterr().err.count("WRONG: sum") == 1


def test_without_a_gpu_bfloat16_is_stood_in_for(run: Run) -> None:
    assert run.dtype == run.kind("bf16") == torch.float32
    assert run.kind("int4") is KINDS["int4"]


def test_every_kind_that_is_served_has_its_name(run: Run) -> None:
    assert all(SHORT[kind] == name for name, kind in KINDS.items() if name != "int8-groups")
    assert set(kinds_of(CPU)) == set(KINDS)
