"""The engine is measured beside transformers, whose model is as large, and whose fastest form counts."""

import time

import pytest
import torch

from benchmarks.common.figures import Spread
from benchmarks.gpu import engine
from benchmarks.gpu.ceilings import Ceilings
from benchmarks.gpu.inputs import SMALL
from benchmarks.gpu.run import Measurement, Run


@pytest.mark.oracle
def test_it_is_as_large_as_ours_and_its_fastest_form_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock counts processor time, because two tokens take too little of it to be told from a busy neighbour."""
    from benchmarks.common import transformers_peer
    from benchmarks.common.transformers_peer import EXPERTS, random_mixtral

    monkeypatch.setattr(transformers_peer, "perf_counter", time.process_time)
    run = Run(torch.device("cpu"), {}, SMALL, ("bf16",), (1,), {}, Ceilings(1.0, 1.0, 1.0))
    peer = random_mixtral(SMALL, run.dtype, run.device)
    assert sum(parameter.numel() for parameter in peer.parameters()) == SMALL.num_parameters()
    measurement = Measurement("", "", None, Spread(1.0, 1.0, 1.0))
    engine.add_fastest(run, measurement, peer, 2)
    ((name, seconds),) = measurement.others.items()
    assert name in {f"transformers generate ({experts})" for experts in EXPERTS} and seconds.median > 0


def test_without_transformers_a_line_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(engine, "find_spec", lambda name: None)
    run = Run(torch.device("cpu"), {}, SMALL, ("bf16",), (1,), {}, Ceilings(1.0, 1.0, 1.0))
    engine.measure_generate(run)
    assert run.measured == [] and "generate is left out: transformers is not installed" in capsys.readouterr().err
