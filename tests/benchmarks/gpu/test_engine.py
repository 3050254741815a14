"""transformers' model beside ours: as large, and measured by what a further token takes."""

import pytest
import torch

from benchmarks.gpu import generate as gpu_generate
from benchmarks.gpu.inputs import SMALL
from benchmarks.gpu.run import Run
from benchmarks.gpu.table import Ceilings


@pytest.mark.oracle
def test_it_is_as_large_as_ours_and_its_fastest_form_is_found() -> None:
    run = Run(torch.device("cpu"), {}, SMALL, ("bf16",), (1,), {}, Ceilings(1.0, 1.0, 1.0))
    model = gpu_generate._peer(run, SMALL)
    assert sum(part.numel() for part in model.parameters()) == SMALL.num_parameters()
    name, seconds = gpu_generate._fastest(run, model, 2)
    assert name in gpu_generate.EXPERTS and seconds.median > 0


def test_without_transformers_a_line_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_generate, "find_spec", lambda name: None)
    run = Run(torch.device("cpu"), {}, SMALL, ("bf16",), (1,), {}, Ceilings(1.0, 1.0, 1.0))
    gpu_generate.measure(run)
    assert run.rows == [] and "generate is left out: transformers is not installed" in capsys.readouterr().err
