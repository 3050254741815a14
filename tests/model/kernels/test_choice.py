"""Checks which functions stand behind the seams of which device."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from octavo.model.config import ModelError
from octavo.model.kernels.choice import Backend, select_backend, try_out
from octavo.model.kernels.cpu.library import library
from octavo.model.layers import RowNorm
from octavo.model.ops.experts import experts
from octavo.model.ops.invariant import OPS, Invariance
from octavo.model.ops.linear import linear, linear_reference
from octavo.model.ops.seams import TORCH
from octavo.model.weights.kinds import INT8
from octavo.model.weights.tiles import TiledWeight
from tests.tiny import TINY_CONFIG

ROOT = Path(__file__).parents[3]


def test_without_kernels_cpu_and_cuda_run_the_same_torch_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("octavo.model.kernels.choice.library", lambda: None)
    monkeypatch.setattr("octavo.model.kernels.choice.find_spec", lambda _: None)
    cpu, cuda = (select_backend(TINY_CONFIG, torch.device(name)).ops for name in ("cpu", "cuda:1"))
    assert cpu == cuda and cpu.experts is experts


def test_on_a_gpu_with_triton_its_kernel_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    sampling = pytest.importorskip("octavo.model.kernels.gpu.sampling", exc_type=ImportError)
    from octavo.model.kernels.gpu.ops import GpuOps

    monkeypatch.setattr(GpuOps, "on", lambda config, _: GpuOps(config, 132, "sm_90"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    cuda = torch.device("cuda")
    assert select_backend(TINY_CONFIG, cuda).ops.draw is sampling.draw
    invariant = select_backend(TINY_CONFIG, cuda, Invariance.FULL)
    assert invariant == Backend(cuda, replace(OPS[Invariance.FULL], draw=sampling.draw), norm=RowNorm)


def test_an_old_gpu_runs_what_torch_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert select_backend(TINY_CONFIG, torch.device("cuda")).ops is TORCH


def test_a_gpu_that_computes_is_tried_with_a_kernel_too(monkeypatch: pytest.MonkeyPatch) -> None:
    trial = pytest.importorskip("octavo.model.kernels.gpu.trial", exc_type=ImportError)
    tried: list[torch.device] = []
    monkeypatch.setattr(trial, "compile_one", tried.append)
    ones = torch.ones(1)
    monkeypatch.setattr(torch, "ones", lambda *shape, device: ones)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    try_out(torch.device("cpu"))
    assert not tried
    try_out(torch.device("cuda"))
    assert tried == [torch.device("cuda")]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    try_out(torch.device("cuda"))  # whose kernels are torch's
    assert len(tried) == 1


def test_a_gpu_that_does_not_compute_is_refused_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*shape: int, device: torch.device) -> None:
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nand much more")

    monkeypatch.setattr(torch, "ones", fail)
    with pytest.raises(
        ModelError, match=r"\(CUDA error: no kernel image .* device\): see that .* or serve with --device"
    ):
        try_out(torch.device("cuda"))


def test_a_cpu_never_loads_triton() -> None:
    code = """import sys, torch, octavo.engine.startup.start; from octavo.model.kernels.choice import select_backend
select_backend(None, torch.device("cpu")); sys.exit("triton" in sys.modules)"""
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.skipif(library() is None, reason="the C kernels were not built")
def test_the_kernels_take_what_is_theirs() -> None:
    ops = select_backend(TINY_CONFIG, torch.device("cpu")).ops
    x, dense = torch.randn(3, 64), torch.randn(32, 64)
    weight = TiledWeight.pack(INT8, dense)
    torch.testing.assert_close(ops.linear(x, weight), linear_reference(x, weight), rtol=1e-5, atol=1e-5)
    assert torch.equal(ops.linear(x, dense), linear(x, dense))


def test_another_device_is_refused() -> None:
    with pytest.raises(ModelError, match="no operations for the device 'mps'"):
        select_backend(TINY_CONFIG, torch.device("mps"))
