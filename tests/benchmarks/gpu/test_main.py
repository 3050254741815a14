"""The whole command runs without a GPU, in Triton's interpreter, on a machine that has little else."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import __main__ as gpu

ROOT = Path(__file__).parents[3]
MISSING = ("fastapi", "pydantic", "uvicorn", "llguidance", "prometheus_client", "huggingface_hub", "tokenizers", "tqdm")
WITHOUT_THEM = f"""
import runpy, sys
sys.modules.update(dict.fromkeys({MISSING!r}))  # importing any of them fails
runpy.run_module("benchmarks.gpu.__main__", run_name="__main__", alter_sys=True)
"""


def test_every_section_runs_on_a_bare_machine_without_a_gpu(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    sections = "kernels,experts,attention,steps,host,load"
    arguments = ["--sections", sections, "--kinds", "int8", "--tokens", "3", "--json", str(file)]
    ended = subprocess.run(
        [sys.executable, "-c", WITHOUT_THEM, *arguments],
        cwd=ROOT,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    first, *rest = ended.stdout.splitlines()
    assert "times mean nothing" in first and not file.exists()
    titles = [line.removeprefix("### ").split()[0] for line in rest if line.startswith("### ")]
    assert titles == ["small", "experts", "attention", "decode", "prefill", "kernels", "the", "loading"]
    assert "13 of 13 comparisons with float64 hold" in ended.stdout


def main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["gpu", *arguments])
    return gpu.main()


@pytest.mark.skipif(torch.cuda.is_available(), reason="would measure the GPU")
def test_a_peer_is_measured_beside_ours(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    peer = "same=benchmarks.gpu.experts:grouped"
    assert main(monkeypatch, "--sections", "experts", "--kinds", "bf16", "--tokens", "3", "--peer", peer) == 0
    said = capsys.readouterr().out
    assert "grouped_mm " in said and ", same " in said
    assert "3 of 3 comparisons with float64 hold" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--kinds", "int3"), "int3: choose kinds of weights among bf16, int8"),
        (("--sections", "kernel"), "there is no section kernel"),
        (("--peer", "os:path"), "a peer is given as NAME=module:function"),
        (("--peer", "x=os:nothing"), "The peer os:nothing cannot be imported"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_a_sentence(
    arguments: tuple[str, str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refusal:
        main(monkeypatch, *arguments)
    assert refusal.value.code and said in f"{refusal.value.code}{capsys.readouterr().err}"
