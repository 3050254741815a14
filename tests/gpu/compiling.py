"""Compiles kernels without a GPU, as launching them would: `python -m tests.gpu.compiling REPORT.json [op ...]`.

It runs in a process of its own, without TRITON_INTERPRET. It installs a driver that names the wanted architecture, and
each launch only compiles and is noted. The kernels' own wrappers are called with tensors that have no data, which also
proves that they do not wait for data.
"""

import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from tests.gpu.launches import Launch, launches

MOST_WORKERS = 8
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
LARGEST_GRID = (2**31 - 1, 65535, 65535)
INSTRUCTIONS = {
    "wgmma": r"wgmma\.mma_async",
    "mma": r"\bmma\.sync",
    "cp.async 16": r"cp\.async\.c[ag]\.shared\.global[^;]*, 0x10,",
    "cp.async less": r"cp\.async\.c[ag]\.shared\.global[^;]*, 0x[48],",
}
LOAD = re.compile(r"\bld\.global[.\w:]*?(?:\.v(\d))?\.[bsuf](\d+)\s")

Noted = list[tuple[JITFunction, Any, tuple[int, ...]]]


@dataclass(frozen=True)
class Kernel:
    """A Kernel is what a launch compiled."""

    name: str
    constants: dict[str, Any]
    types: str  # types of the arguments, and which are multiples of 16 or ones
    grid: tuple[int, ...]
    warps: int
    registers: int  # per thread
    stack: int  # bytes of spilled registers per thread
    shared: int  # bytes per program
    instructions: dict[str, int]  # number of each of INSTRUCTIONS in its PTX
    loads: dict[str, int]  # bytes that a thread loads at once -> number of such loads


@dataclass(frozen=True)
class Outcome:
    """An Outcome holds a launch's kernels, or the error that it raised."""

    launch: Launch
    kernels: list[Kernel] = field(default_factory=list)
    error: str = ""


class Pretended:
    """A Pretended driver tells Triton the architecture of a device that is not there."""

    def __init__(self, arch: str) -> None:
        self.target = GPUTarget("cuda", int(arch.removeprefix("sm_")), 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return self.target.arch  # Triton keeps compiled kernels by device.

    def get_current_stream(self, _device: int) -> int:
        return 0


@contextmanager
def noting(arch: str) -> Iterator[Noted]:
    """Compiles launches for `arch` instead of running them; yields the list to which they are added."""
    noted: Noted = []
    run = JITFunction.run

    def note(function: JITFunction, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        compiled = run(function, *args, grid=grid, warmup=True, **options)
        noted.append((function, compiled, tuple(grid)))
        return compiled

    driver.set_active(Pretended(arch))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JITFunction, "run", note)
        yield noted


def compile_share(share: list[Launch]) -> list[Outcome]:
    return [compile_launch(launch) for launch in share]


def compile_launch(launch: Launch) -> Outcome:
    """Compiles what a launch runs."""
    try:
        with noting(launch.arch) as noted:
            launch.call()
        return Outcome(launch, [describe(*each) for each in noted])
    except Exception as error:  # The report holds the error, and the other launches are compiled.
        return Outcome(launch, error=f"{type(error).__name__}: {error}")


def describe(function: JITFunction, compiled: Any, grid: tuple[int, ...]) -> Kernel:
    assert all(size <= most for size, most in zip(grid, LARGEST_GRID, strict=False)), f"a grid of {grid}"
    source, ptx = compiled.src, compiled.asm["ptx"]
    usage = resources(compiled.asm["cubin"])
    return Kernel(
        name=function.__name__,
        constants={function.arg_names[path[0]]: str(value) for path, value in source.constants.items()},
        types=f"{source.signature} {source.attrs}",
        grid=grid,
        warps=compiled.metadata.num_warps,
        registers=usage["REG"],
        stack=usage["STACK"],
        shared=compiled.metadata.shared,
        instructions={name: len(re.findall(pattern, ptx)) for name, pattern in INSTRUCTIONS.items()},
        loads=dict(Counter(str(int(vector or 1) * int(bits) // 8) for vector, bits in LOAD.findall(ptx))),
    )


@cache
def resources(cubin: bytes) -> dict[str, int]:
    """Returns REG, STACK, SHARED and so on of a cubin's only function, as cuobjdump prints them."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [TOOLS / "cuobjdump", "--dump-resource-usage", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {name: int(value) for name, value in re.findall(r"\b([A-Z]+):(\d+)", text)}


def parse(report: str) -> list[Outcome]:
    """Returns the outcomes of a report that main has written."""
    return [
        Outcome(Launch(**line["launch"]), [Kernel(**kernel) for kernel in line["kernels"]], line["error"])
        for line in json.loads(report)
    ]


def main(report: Path, ops: list[str]) -> None:
    shares: dict[tuple[str, ...], list[Launch]] = {}  # Launches that may share kernels go to one process.
    for launch in launches():
        if not ops or launch.op in ops:
            shares.setdefault((launch.op, launch.arch, launch.kind), []).append(launch)
    workers = min(MOST_WORKERS, os.cpu_count() or 1)
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        outcomes = [outcome for share in pool.map(compile_share, shares.values()) for outcome in share]
    report.write_text(json.dumps([asdict(outcome) for outcome in outcomes]), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
