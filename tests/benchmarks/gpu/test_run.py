"""A run goes on when something fails, compares kernels with float64, and prints what it found."""

import json
import math

import pytest
import torch

from benchmarks.common.figures import Spread
from benchmarks.gpu.ceilings import Ceilings
from benchmarks.gpu.inputs import SMALL
from benchmarks.gpu.run import KINDS, Check, Measurement, Run, difference, kinds_of, poisoned
from octavo.model.weights.precision import SHORT

CPU = torch.device("cpu")
CEILINGS = Ceilings(read=3e12, product=8e14, copy=5e10)
MEASUREMENT = Measurement(
    section="experts of one layer",
    name="bf16, 8 tokens",
    floor=0.8e-3,
    time=Spread(1e-3, 0.9e-3, 1.2e-3),
    others={"peer": Spread(1.5e-3, 1.4e-3, 1.6e-3)},
)


@pytest.fixture
def run() -> Run:
    return Run(CPU, {"device": "H"}, SMALL, ("bf16",), (1,), {}, CEILINGS)


def test_a_failure_is_kept_and_the_rest_goes_on(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    for count in (1, 0):
        with run.attempt(f"1 / {count}"):
            run.add(Measurement("division", f"by {count}", None, Spread.over([1 / count])))
    assert run.failures == {"1 / 0": "ZeroDivisionError: division by zero"}
    assert [each.name for each in run.measured] == ["by 1"]
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


def test_the_floor_is_what_takes_longer() -> None:
    assert CEILINGS.floor(3e9) == 1e-3
    assert CEILINGS.floor(3e9, flop=1.6e12) == 2e-3


def test_a_line_has_its_share_and_the_others_ratios(run: Run) -> None:
    run.add(MEASUREMENT)
    lines = run.markdown().splitlines()
    assert lines[0] == "device H"
    assert "3.00 TB/s" in lines[2] and "800 TFLOP/s" in lines[2] and "50.0 GB/s" in lines[2]
    assert lines[-1] == "| bf16, 8 tokens | 800.0 us | 1.00 ms (900.0 us to 1.20 ms) | 80% | peer 1.50 |"


def test_what_is_wrong_is_named_and_a_nan_is_wrong(run: Run) -> None:
    run.checks.extend([Check("fine", 0.001, 0.01), Check("wrong", 0.02, 0.01), Check("no number", float("nan"), 0.01)])
    run.failures["load"] = "MemoryError: full"
    text = run.markdown()
    assert "1 of 3 comparisons with float64 hold" in text
    assert "- wrong: error 2.00%, at most 1.00% is allowed" in text and "- no number" in text and "fine" not in text
    assert "- load: MemoryError: full" in text


def test_the_document_is_json_and_says_the_same(run: Run) -> None:
    run.add(MEASUREMENT)
    run.check("x", 0.0, 0.1)
    document = json.loads(json.dumps(run.document()))
    assert document["rows"][0]["share"] == 0.8 and document["checks"][0]["passed"] is True
    assert document["ceilings"]["read"] == 3e12


def test_a_difference_is_a_share_of_the_values() -> None:
    expected = torch.tensor([3.0, -4.0])
    assert difference(expected, expected) == 0
    assert difference(expected * 1.01, expected) == pytest.approx(0.01, rel=1e-4)
    assert math.isnan(difference(torch.tensor([3.0, math.nan]), expected))


def test_what_is_not_written_is_no_number() -> None:
    with poisoned():
        x = torch.ones(3)
        assert x.new_empty(4, dtype=torch.bfloat16).isnan().all() and torch.empty_like(x).isnan().all()
        assert (x.new_empty(4, dtype=torch.int32) == 2**31 - 1).all()
    assert not torch.are_deterministic_algorithms_enabled()
