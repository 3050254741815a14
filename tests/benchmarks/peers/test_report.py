"""The tables of the peers say what was measured, and leave out what was not."""

import json
import math

import pytest

from benchmarks.common.figures import Round, Sample
from benchmarks.common.machine import describe
from benchmarks.common.process import Start
from benchmarks.peers.figures import CLIENTS, EXPERT_TOKENS, LOADS, Figure, LayerFigure, Measured
from benchmarks.peers.report import Report
from tests.benchmarks.peers.test_figures import CONFIG

MACHINE = describe() | {"llama.cpp": "1.2", "load_average_after": 0.5}


def engine(rate: float) -> dict[str, list[Figure]]:
    return {load.name: [Figure(rate, 2e9), Figure(2 * rate, 2e9)] for load in LOADS}


def http(rate: int) -> dict[int, list[Round]]:
    return {clients: [Round((Sample(rate, (1 / rate, 0.9)),), 1.0)] for clients in CLIENTS}


def report(measured: dict[str, Measured]) -> Report:
    return Report(MACHINE, CONFIG, threads=2, rounds=2, measured=measured)


def test_engine_table_and_its_ratios() -> None:
    found = report({"octavo-int8": Measured(engine=engine(20)), "llama-q8_0": Measured(engine=engine(10), form="fast")})
    lines = found.markdown().splitlines()
    assert "| Octavo int8 |" + " 30.0 (20.0 to 40.0) |" * len(LOADS) in lines
    assert "| Octavo int8 / llama.cpp Q8_0 |" + " 2.00 (2.00 to 2.00) |" * len(LOADS) in lines
    assert "llama.cpp Q8_0: fast" in lines
    assert "load " in lines[0]
    assert not any("HTTP" in line and "clients" in line for line in lines)


def test_http_table_and_its_ratios() -> None:
    lines = (
        report({"octavo-int8": Measured(http=http(20)), "llama-q8_0": Measured(http=http(10))}).markdown().splitlines()
    )
    assert "| Octavo int8 | 16 | 20.0 (20.0 to 20.0) | 50 ms | 850 ms | 0 of 1 |" in lines
    ratios = " 2.00 (2.00 to 2.00) |" * len(CLIENTS) + " 0.50 (0.50 to 0.50) |" * len(CLIENTS)
    assert f"| Octavo int8 / llama.cpp Q8_0 |{ratios}" in lines


def test_expert_layer_and_starts() -> None:
    figures = [LayerFigure(1e-3, 1.7e7, 2e10, 2e10), LayerFigure(2e-3, 1.7e7, 2e10, 4e10)]
    layer = dict.fromkeys(EXPERT_TOKENS, figures)
    starts = {"server": Start(9.5, 2_000_000_000, 2_500_000_000)}
    lines = (
        report({"octavo-int4": Measured(experts=layer, starts=starts, served=2_100_000_000)}).markdown().splitlines()
    )
    assert any(line.startswith("| Octavo int4 | 85 (85 to 85) % of 20.0 GB/s; 1000 us; 1 of 2 |") for line in lines)
    assert "| Octavo int4 | server | 9.5 | 2.00 GB | 2.50 GB | 2.10 GB |" in lines
    assert "1 token |" in next(line for line in lines if "2 tokens" in line)


def test_the_document_is_json_with_every_round() -> None:
    document = json.loads(json.dumps(report({"octavo-int8": Measured(engine=engine(20), http=http(10))}).document()))
    rounds = document["contenders"]["octavo-int8"]["engine"]["prefill 512"]
    assert [figure["rate"] for figure in rounds] == [20, 40]
    assert math.isclose(document["machine"]["load_average_after"], 0.5)


@pytest.mark.parametrize("measured", [{}, {"octavo-int8": Measured()}])
def test_nothing_measured_is_no_table(measured: dict[str, Measured]) -> None:
    assert "|" not in report(measured).markdown()
