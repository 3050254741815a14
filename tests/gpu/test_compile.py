"""Checks what Triton compiles for every committed configuration and architecture; no GPU is needed (compiling.py)."""

import os
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest
import torch
import triton

from tests.gpu.compiling import Kernel, Outcome, parse
from tests.gpu.devices import DEVICES, MOST_REGISTERS
from tests.gpu.launches import ARCHS, FAULTY
from tests.gpu.report_cache import kept, key_of
from tests.gpu.shapes import SHAPES

pytestmark = pytest.mark.timeout(900)  # a minute on two idle cores
ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".pytest_cache" / "compiled"
BYTES = {"bf16": 2, "fp16": 2, "fp32": 4, "int8": 1, "fp8": 1, "int4": 0.5, "fp4": 0.5}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[Outcome]:
    """Returns the outcomes of all launches, which an earlier run has kept unless something has changed since."""
    target = tmp_path_factory.mktemp("compiled") / "report.json"
    return parse(kept(CACHE, key(), lambda: compile_all(target), has_no_errors))


def compile_all(target: Path) -> str:
    """Compiles all launches in a process in which Triton does not interpret; `target` is where it writes its report."""
    subprocess.run([sys.executable, "-m", "tests.gpu.compiling", str(target)], cwd=ROOT, env=environment(), check=True)
    return target.read_text(encoding="utf-8")


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}


def key() -> str:
    """Returns the hash of what the outcomes depend on: sources, versions and Triton's settings."""
    settings = [f"{name}={value}" for name, value in sorted(environment().items()) if name.startswith("TRITON_")]
    versions = [sys.version, torch.__version__, triton.__version__]
    scripts = [ROOT / "tests" / "gpu" / name for name in ("compiling.py", "launches.py", "shapes.py")]
    model = [path for path in (ROOT / "model").rglob("*") if path.suffix in (".py", ".json")]
    return key_of(ROOT, [*scripts, *model], [*versions, *settings])


def has_no_errors(report: str) -> bool:
    """Returns whether the report is whole and nothing has failed but what is made to fail."""
    try:
        return all(outcome.kernels or outcome.launch.op in FAULTY for outcome in parse(report))
    except (ValueError, TypeError, KeyError):
        return False


def kernels(outcomes: list[Outcome]) -> Iterator[tuple[str, Kernel]]:
    """Yields all kernels that are not made to fail, with their architecture."""
    for outcome in outcomes:
        if outcome.launch.op not in FAULTY:
            yield from ((outcome.launch.arch, kernel) for kernel in outcome.kernels)


def products(outcomes: list[Outcome]) -> Iterator[tuple[str, Kernel]]:
    """Yields the kernels that multiply weights."""
    return ((arch, kernel) for arch, kernel in kernels(outcomes) if kind_of(kernel))


def kind_of(kernel: Kernel) -> str:
    """Returns the kind of the weights that a kernel multiplies; empty if it multiplies none."""
    return "".join(re.findall(r"kind='(\w+)'", kernel.constants.get("TILES", "")))


def sizes_of(kernel: Kernel) -> dict[str, int]:
    """Returns the sizes of the tiles of a kernel that multiplies weights."""
    return {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)", kernel.constants["TILES"])}


def test_everything_compiles_and_waits_for_nothing(outcomes: list[Outcome]) -> None:
    errors = {str(outcome.launch): outcome.error for outcome in outcomes if outcome.launch.op not in FAULTY}
    assert {launch: error for launch, error in errors.items() if error} == {}
    assert all(outcome.kernels for outcome in outcomes if outcome.launch.op not in FAULTY)


def test_waiting_for_the_device_would_be_seen(outcomes: list[Outcome]) -> None:
    (waiting,) = (outcome for outcome in outcomes if outcome.launch.op == "waiting")
    assert "cannot be called on meta tensors" in waiting.error


def test_all_models_are_compiled_for_all_architectures(outcomes: list[Outcome]) -> None:
    """Expects what a layer adds to its products; those are compiled for each line of the table of configurations."""
    compiled = {(outcome.launch.op, outcome.launch.model, outcome.launch.arch) for outcome in outcomes}
    ops = "sort.sort_pairs", "router.route", "rotary.rotate_and_store", "attention.attend", "combine.combine"
    assert set(product(ops, SHAPES, ARCHS)) <= compiled
    assert {("decoder.decode", model, "sm_90") for model in SHAPES} <= compiled


def test_spilled_registers_would_be_seen(outcomes: list[Outcome]) -> None:
    (spilling,) = (outcome for outcome in outcomes if outcome.launch.op == "spilling")
    assert spilling.kernels[0].stack > 0


def test_no_register_is_spilled(outcomes: list[Outcome]) -> None:
    assert [(arch, kernel) for arch, kernel in kernels(outcomes) if kernel.stack] == []
    assert all(0 < kernel.registers <= MOST_REGISTERS for _, kernel in kernels(outcomes))


def test_every_program_fits_a_multiprocessor(outcomes: list[Outcome]) -> None:
    for arch, kernel in kernels(outcomes):
        assert kernel.shared <= DEVICES[arch].most_shared, kernel
        assert DEVICES[arch].resident(kernel.warps, kernel.registers, kernel.shared) >= 1, kernel


def test_serving_compiles_nothing_anew(outcomes: list[Outcome]) -> None:
    """Allows one kernel for all numbers of tokens that share a configuration: 1, multiples of 16 and others."""
    variants: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for outcome in outcomes:
        for kernel in outcome.kernels:
            launch = outcome.launch
            key = (launch.arch, launch.kind, launch.model, kernel.name, str(kernel.constants), str(kernel.warps))
            variants[key].add(kernel.types)
    assert [(key, types) for key, types in variants.items() if len(types) > 1] == []


def test_products_run_on_the_matrix_units(outcomes: list[Outcome]) -> None:
    """Expects wgmma where it exists and has 64 rows, 16 tokens and 4 warps; elsewhere mma.sync; for float32 neither."""
    for arch, kernel in products(outcomes):
        rows, tokens = sizes_of(kernel)["rows"], sizes_of(kernel)["tokens"]
        wide = arch == "sm_90" and rows % 64 == 0 and tokens >= 16 and kernel.warps % 4 == 0
        meant = set() if kind_of(kernel) == "fp32" else {"wgmma" if wide else "mma"}
        assert {name for name in ("wgmma", "mma") if kernel.instructions[name]} == meant, (arch, kernel)


def test_weights_are_copied_16_bytes_at_a_time(outcomes: list[Outcome]) -> None:
    """Excepts 8 bits with wgmma, whose registers are read from an arrangement in eights."""
    for arch, kernel in products(outcomes):
        kind, sizes = kind_of(kernel), sizes_of(kernel)
        if kind in ("int8", "fp8") and kernel.instructions["wgmma"]:
            continue
        tile = sizes["rows"] * sizes["inputs"] * BYTES[kind]
        assert kernel.instructions["cp.async 16"] >= sizes["stages"] * tile / (16 * 32 * kernel.warps), (arch, kernel)


def test_enough_bytes_are_under_way(outcomes: list[Outcome]) -> None:
    """Needs, at 3 TB/s and 600 ns, 14 KB of weights for each multiprocessor of an H100, and demands twice that."""
    for outcome in outcomes:
        for kernel in outcome.kernels:
            if kind_of(kernel) not in ("", "fp32") and outcome.launch.tokens <= 32:
                sizes = sizes_of(kernel)
                tile = sizes["rows"] * sizes["inputs"] * BYTES[kind_of(kernel)]
                programs = DEVICES[outcome.launch.arch].resident(kernel.warps, kernel.registers, kernel.shared)
                assert programs * (sizes["stages"] - 1) * tile >= 28 << 10, (outcome.launch, kernel)


def test_attention_reads_keys_several_tiles_ahead_and_multiplies_on_matrix_units(outcomes: list[Outcome]) -> None:
    """Expects copies of sixteen bytes into shared memory; prompts use warpgroup instructions where these exist."""
    attention = [(arch, kernel) for arch, kernel in kernels(outcomes) if kernel.name == "_attend"]
    assert all(kernel.instructions["cp.async 16"] for _, kernel in attention)
    assert not any(kernel.instructions["cp.async less"] for _, kernel in attention)
    prompts = [(arch, kernel) for arch, kernel in attention if kernel.constants["ROWS"] == "128"]
    assert {arch for arch, _ in prompts} == set(ARCHS)
    for arch, kernel in prompts:
        assert bool(kernel.instructions["wgmma"]) == (arch == "sm_90"), kernel
        assert bool(kernel.instructions["mma"]) == (arch != "sm_90"), kernel
