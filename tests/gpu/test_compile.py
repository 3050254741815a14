"""What the compiler makes of every committed configuration, for each architecture; without a GPU (compiling.py)."""

import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gpu.compiling import Kernel, Outcome, read
from tests.gpu.devices import DEVICES
from tests.gpu.launches import FAULTY

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[Outcome]:
    """Of all launches; in a process where Triton compiles."""
    report = tmp_path_factory.mktemp("compiled") / "report.json"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.gpu.compiling", str(report)]
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    return read(report)


def kernels(outcomes: list[Outcome]) -> Iterator[tuple[str, Kernel]]:
    """Of all that is not made to fail, with its architecture."""
    for outcome in outcomes:
        if outcome.launch.op not in FAULTY:
            yield from ((outcome.launch.arch, kernel) for kernel in outcome.kernels)


def test_everything_compiles_and_waits_for_nothing(outcomes: list[Outcome]) -> None:
    errors = {str(outcome.launch): outcome.error for outcome in outcomes if outcome.launch.op not in FAULTY}
    assert {launch: error for launch, error in errors.items() if error} == {}
    assert all(outcome.kernels for outcome in outcomes if outcome.launch.op not in FAULTY)


def test_waiting_for_the_device_would_be_seen(outcomes: list[Outcome]) -> None:
    (waiting,) = (outcome for outcome in outcomes if outcome.launch.op == "waiting")
    assert "cannot be called on meta tensors" in waiting.error


def test_spilled_registers_would_be_seen(outcomes: list[Outcome]) -> None:
    (spilling,) = (outcome for outcome in outcomes if outcome.launch.op == "spilling")
    assert spilling.kernels[0].stack > 0


def test_no_register_is_spilled(outcomes: list[Outcome]) -> None:
    assert [(arch, kernel) for arch, kernel in kernels(outcomes) if kernel.stack] == []


def test_every_program_fits_a_multiprocessor(outcomes: list[Outcome]) -> None:
    for arch, kernel in kernels(outcomes):
        assert kernel.shared <= DEVICES[arch].most_shared, kernel
        assert DEVICES[arch].resident(kernel.warps, kernel.registers, kernel.shared) >= 1, kernel


def test_serving_compiles_nothing_anew(outcomes: list[Outcome]) -> None:
    """One kernel for all numbers of tokens that share a configuration: 1, multiples of 16 and others."""
    variants: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for outcome in outcomes:
        for kernel in outcome.kernels:
            key = (outcome.launch.arch, outcome.launch.kind, kernel.name, str(kernel.constants), str(kernel.warps))
            variants[key].add(kernel.types)
    assert [(key, types) for key, types in variants.items() if len(types) > 1] == []
