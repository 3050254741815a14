"""What follows from the figures of the peers, by hand and by brute force."""

from dataclasses import replace

import pytest
import torch

from benchmarks.common.figures import Round, Sample, Spread
from benchmarks.common.loads import Load
from benchmarks.peers.figures import Figure, LayerFigure, Measured, ratio, share, step_bytes
from tests.tiny import TINY_CONFIG

CONFIG = replace(
    TINY_CONFIG, intermediate_size=16, num_hidden_layers=3, head_dim=2, num_experts=8, num_experts_per_tok=2
)


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
    assert share(Figure(rate=40.0, bandwidth=1000.0), load, nbytes=50.0) == pytest.approx(0.5)  # ten steps a second
    layer = LayerFigure(seconds=0.1, nbytes=80.0, before=900.0, after=1000.0)
    assert layer.share == pytest.approx(0.8) and layer.steady
    assert not LayerFigure(seconds=0.1, nbytes=80.0, before=1000.0, after=600.0).steady


def test_ratios_are_of_the_same_round() -> None:
    assert ratio([2.0, 9.0, 4.0], [1.0, 3.0, 4.0]) == Spread(2.0, 1.0, 3.0)


def test_http_figures() -> None:
    good = Sample(10, (0.5, 1.0))
    late = Sample(10, (1.5, 2.0))
    measured = Measured(http={8: [Round((good, late), 2.0), Round((Sample(error="broken"),), 2.0)]})
    assert measured.http_rates(8) == [10.0, 0.0]
    assert measured.first_tokens(8) == [1.0, float("inf")]
    assert measured.failed == 1
