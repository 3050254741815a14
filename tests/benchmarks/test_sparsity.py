"""The table and the plot of three models follow from the times of steps."""

import json
from pathlib import Path

import pytest

from benchmarks.common.checkpoint import SHAPES
from benchmarks.common.machine import describe
from benchmarks.sparsity import LOADS, SAME_ACTIVE, SAME_TOTAL, SPARSE, Load, ModelFigures, document, draw, table

RATES = {SPARSE: [30.0, 33.0, 36.0], SAME_TOTAL: [10.0, 11.0, 9.0], SAME_ACTIVE: [30.0, 30.0, 40.0]}


def measured() -> dict[str, ModelFigures]:
    rounds = {shape: {load.name: rates for load in LOADS} for shape, rates in RATES.items()}
    total = {SPARSE: 1_517_000_000, SAME_TOTAL: 1_517_000_000, SAME_ACTIVE: 460_000_000}
    active = {SPARSE: 427_000_000, SAME_TOTAL: 1_484_000_000, SAME_ACTIVE: 427_000_000}
    return {
        shape: ModelFigures(total[shape], active[shape], f"all of {shape}", 2.5, 2 * total[shape], rounds[shape])
        for shape in SHAPES
    }


def test_decoding_is_measured_where_all_streams_go_on() -> None:
    load = Load("", streams=2, prompt_tokens=8, max_tokens=4)
    # One stream's prompt comes a step later, and that step holds prompt tokens; its last one is alone.
    steps = [(1.0, 1), (3.0, 2), (3.5, 2), (4.5, 2), (4.6, 1)]
    assert load.rate(steps) == pytest.approx(4 / 1.5)


def test_a_prompt_is_measured_to_the_end_of_its_last_chunk() -> None:
    assert Load("", streams=1, prompt_tokens=512, max_tokens=1).rate([(1.0, 0), (2.0, 1)]) == 256


def test_the_counts_of_parameters_are_those_of_the_checkpoint(tmp_path: Path) -> None:
    hello = {"description": ["it", "its cache"], "load_seconds": 1.0, "anonymous_bytes": 5}
    found = {}
    for shape, config in SHAPES.items():
        (tmp_path / "config.json").write_text(json.dumps(config))
        found[shape] = ModelFigures.of(tmp_path, hello)
    assert found[SAME_TOTAL].parameters == pytest.approx(found[SPARSE].parameters, rel=1e-3)
    assert found[SAME_ACTIVE].active == pytest.approx(found[SPARSE].active, rel=1e-3)
    assert found[SPARSE].parameters > 3 * found[SPARSE].active
    assert found[SPARSE].description == "it"


def test_table() -> None:
    lines = table(describe(), measured()).splitlines()
    rates = "33.0 (30.0 to 36.0)"
    assert f"| sparse | 1.517B | 0.427B | 3.03 GB | {rates} | {rates} | {rates} |" in lines
    assert lines[-2].startswith("| sparse / dense, same total |  |  |  | 3.00 (3.00 to 4.00) |")
    assert lines[-1].startswith("| sparse / dense, same active |  |  |  | 1.00 (0.90 to 1.10) |")
    assert any("all of dense-total" in line for line in lines)
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1


def test_the_document_holds_every_round() -> None:
    found = json.loads(json.dumps(document(describe(), ["--dtype", "float32"], measured())))
    assert found["models"][SPARSE]["rounds"][LOADS[0].name] == RATES[SPARSE]
    assert found["sparse_over"][SAME_TOTAL][LOADS[0].name] == {"median": 3.0, "low": 3.0, "high": 4.0}
    assert found["flags"] == ["--dtype", "float32"]


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_the_plot_is_drawn_and_always_the_same(tmp_path: Path, suffix: str) -> None:
    once, again = tmp_path / f"once{suffix}", tmp_path / f"again{suffix}"
    draw(measured(), once)
    draw(measured(), again)
    assert once.read_bytes() == again.read_bytes()
    assert once.stat().st_size > 5_000
