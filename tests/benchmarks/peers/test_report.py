"""The peers' figures are computed by hand and by brute force; the tables leave out what was not measured."""

import json
import math
from dataclasses import replace

import pytest
import torch

from benchmarks.common.figures import Round, Sample, Spread
from benchmarks.common.loads import Load
from benchmarks.common.machine import describe
from benchmarks.common.process import Start
from benchmarks.peers.gguf_file import WeightBytes
from benchmarks.peers.report import (
    CLIENTS,
    EXPERT_TOKENS,
    LOADS,
    ContenderFigures,
    LayerFigure,
    LoadFigure,
    PeersReport,
    ratio,
    share,
    step_bytes,
)
from tests.tiny import TINY_CONFIG

CONFIG = replace(
    TINY_CONFIG, intermediate_size=16, num_hidden_layers=3, head_dim=2, num_experts=8, num_experts_per_tok=2
)
MACHINE = describe() | {"llama.cpp": "1.2", "load_average_after": 0.5}


def engine(rate: float) -> dict[str, list[LoadFigure]]:
    return {load.name: [LoadFigure(rate, 2e9), LoadFigure(2 * rate, 2e9)] for load in LOADS}


def http(rate: int) -> dict[int, list[Round]]:
    return {clients: [Round((Sample(rate, (1 / rate, 0.9)),), 1.0)] for clients in CLIENTS}


def report(measured: dict[str, ContenderFigures]) -> PeersReport:
    return PeersReport(MACHINE, CONFIG, threads=2, rounds=2, measured=measured)


def test_engine_table_and_its_ratios() -> None:
    found = report(
        {
            "octavo-int8": ContenderFigures(engine=engine(20)),
            "llama-q8_0": ContenderFigures(engine=engine(10), form="fast"),
        }
    )
    lines = found.markdown().splitlines()
    assert "| Octavo int8 |" + " 30.0 (20.0 to 40.0) |" * len(LOADS) in lines
    assert "| Octavo int8 / llama.cpp Q8_0 |" + " 2.00 (2.00 to 2.00) |" * len(LOADS) in lines
    assert "llama.cpp Q8_0: fast" in lines
    assert "load " in lines[0]
    assert not any("HTTP" in line and "clients" in line for line in lines)


def test_http_table_and_its_ratios() -> None:
    lines = (
        report({"octavo-int8": ContenderFigures(http=http(20)), "llama-q8_0": ContenderFigures(http=http(10))})
        .markdown()
        .splitlines()
    )
    assert "| Octavo int8 | 16 | 20.0 (20.0 to 20.0) | 50 ms | 850 ms | 0 of 1 |" in lines
    ratios = " 2.00 (2.00 to 2.00) |" * len(CLIENTS) + " 0.50 (0.50 to 0.50) |" * len(CLIENTS)
    assert f"| Octavo int8 / llama.cpp Q8_0 |{ratios}" in lines


def test_expert_layer_and_starts() -> None:
    figures = [LayerFigure(1e-3, 1.7e7, 2e10, 2e10), LayerFigure(2e-3, 1.7e7, 2e10, 4e10)]
    layer = dict.fromkeys(EXPERT_TOKENS, figures)
    starts = {"server": Start(9.5, 2_000_000_000, 2_500_000_000)}
    lines = (
        report({"octavo-int4": ContenderFigures(experts=layer, starts=starts, served=2_100_000_000)})
        .markdown()
        .splitlines()
    )
    assert any(line.startswith("| Octavo int4 | 85 (85 to 85) % of 20.0 GB/s; 1000 us; 1 of 2 |") for line in lines)
    assert "| Octavo int4 | server | 9.5 | 2.00 GB | 2.50 GB | 2.10 GB |" in lines
    assert "1 token |" in next(line for line in lines if "2 tokens" in line)


def test_the_document_is_json_with_every_round() -> None:
    document = json.loads(
        json.dumps(report({"octavo-int8": ContenderFigures(engine=engine(20), http=http(10))}).document())
    )
    rounds = document["contenders"]["octavo-int8"]["engine"]["prefill 512"]
    assert [figure["rate"] for figure in rounds] == [20, 40]
    assert math.isclose(document["machine"]["load_average_after"], 0.5)


def test_a_files_own_bytes_are_counted() -> None:
    def shares(weight_bytes: WeightBytes | None) -> list[str]:
        figures = ContenderFigures(engine=engine(1e8), weight_bytes=weight_bytes)
        lines = report({"llama-q4_0": figures}).markdown().splitlines()
        return next(line for line in lines if "GB/s" in line).split()

    plain, mixed = shares(None), shares(WeightBytes(experts=2 * 18 / 32, linears=2 * 18 / 32))
    assert int(mixed[4]) == pytest.approx(2 * int(plain[4]), abs=1)


@pytest.mark.parametrize("measured", [{}, {"octavo-int8": ContenderFigures()}])
def test_nothing_measured_is_no_table(measured: dict[str, ContenderFigures]) -> None:
    assert "|" not in report(measured).markdown()


def test_one_stream_reads_the_active_weights() -> None:
    small = 3 * (2 * 8 + 8 * 8) + 8  # norms and routers
    embedding = 100 * 8
    assert step_bytes(CONFIG, 1, 1.0, 1.0) == CONFIG.num_active_parameters() - embedding - small


def test_many_streams_read_the_distinct_experts() -> None:
    generator = torch.Generator().manual_seed(0)
    chosen = torch.rand(20000, 4, 8, generator=generator).topk(2).indices.flatten(1)  # of four streams each
    touched = torch.zeros(20000, 8).scatter_(1, chosen, 1.0).sum(1).mean().item()
    expert = 3 * 8 * 16
    assert step_bytes(CONFIG, 4, 2.0, 0.0) / (2 * 3 * expert) == pytest.approx(touched, rel=0.01)


def test_shares_of_the_bandwidth() -> None:
    load = Load("", streams=4, prompt_tokens=1, max_tokens=9)
    assert share(LoadFigure(rate=40.0, bandwidth=1000.0), load, nbytes=50.0) == pytest.approx(0.5)  # ten steps a second
    layer = LayerFigure(seconds=0.1, nbytes=80.0, before=900.0, after=1000.0)
    assert layer.share == pytest.approx(0.8) and layer.steady
    assert not LayerFigure(seconds=0.1, nbytes=80.0, before=1000.0, after=600.0).steady


def test_ratios_are_of_the_same_round() -> None:
    assert ratio([2.0, 9.0, 4.0], [1.0, 3.0, 4.0]) == Spread(2.0, 1.0, 3.0)


def test_http_figures() -> None:
    good = Sample(10, (0.5, 1.0))
    late = Sample(10, (1.5, 2.0))
    measured = ContenderFigures(http={8: [Round((good, late), 2.0), Round((Sample(error="broken"),), 2.0)]})
    assert measured.http_rates(8) == [10.0, 0.0]
    assert measured.first_tokens(8) == [1.0, float("inf")]
    assert measured.failed == 1
