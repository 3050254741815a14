"""Runs llama.cpp as a peer: finds or builds its programs, makes its files, and runs its own benchmark."""

import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.common.loads import Load, StepEnd
from benchmarks.peers.gguf_file import convert

PACKAGE = "llama-cpp-python"  # its source distribution holds llama.cpp's sources
VERSION = "0.3.36"
SERVER, BENCH, QUANTIZE = PROGRAMS = ("llama-server", "llama-batched-bench", "llama-quantize")
OPTIONS = ("-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", "-DBUILD_SHARED_LIBS=OFF", "-DLLAMA_CURL=OFF")

# A policy says how OpenMP's threads wait at the barriers between operations. By default libgomp lets them spin for so
# long that a step takes many times as long whenever another process has a core; a bounded spin is as fast without that.
POLICIES: dict[str, Mapping[str, str]] = {
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    "spinning briefly": {"GOMP_SPINCOUNT": "100000"},
}


def obtain(directory: Path | None, cache: Path) -> Path:
    """Returns the programs' directory: the given one, or one under the user's cache, where they are built once."""
    if directory is not None:
        for path in (directory, directory / "bin", directory / "build" / "bin"):
            if _is_complete(path):
                return path
        raise SystemExit(
            f"{directory} does not hold {', '.join(PROGRAMS)}: build them there, or leave --llama-cpp out."
        )
    target = cache / "octavo" / f"llama.cpp-{VERSION}"
    programs = target / "build" / "bin"
    if not _is_complete(programs):
        _build(_sources(target), programs.parent)
    return programs


def _is_complete(path: Path) -> bool:
    return all((path / name).is_file() for name in PROGRAMS)


def _sources(target: Path) -> Path:
    """Downloads the source distribution with pip, under the user's own index settings, and unpacks it."""
    target.mkdir(parents=True, exist_ok=True)
    requirement = f"{PACKAGE}=={VERSION}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary=:all:", "--dest", str(target)]
    _run([*command, requirement], f"pip could not download the sources of {requirement}")
    (archive,) = target.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(target, filter="data")
    (sources,) = target.glob("*/vendor/llama.cpp")
    return sources


def _build(sources: Path, build: Path) -> None:
    print("building llama.cpp, which takes minutes ...", file=sys.stderr)
    _run(["cmake", "-S", str(sources), "-B", str(build), *OPTIONS], "cmake cannot configure llama.cpp")
    threads = str(len(os.sched_getaffinity(0)))
    command = ["cmake", "--build", str(build), "--parallel", threads, "--target", *PROGRAMS]
    _run(command, "llama.cpp cannot be built")


def _run(command: list[str], failure: str) -> None:
    try:
        status = subprocess.run(command, stdout=sys.stderr, check=False).returncode
    except FileNotFoundError:
        raise SystemExit(f"{failure}: there is no program {command[0]}; install it, or give --llama-cpp.") from None
    if status:
        raise SystemExit(f"{failure}; its own message is above, and --llama-cpp takes programs that exist.")


def version(programs: Path) -> str:
    """Returns the version that llama.cpp states."""
    done = subprocess.run([programs / SERVER, "--version"], capture_output=True, text=True, check=False)
    said = (line.removeprefix("version: ") for line in (done.stdout + done.stderr).splitlines() if "version" in line)
    return next(said, "of an unknown version")


def file_of(model: Path, kind: str, programs: Path) -> Path:
    """Returns the model as a GGUF file of a type such as F16 or Q8_0, which is made when it is first needed."""
    bar: tqdm[Any]
    with tqdm(desc="GGUF file", unit="B", unit_scale=True, dynamic_ncols=True, disable=None) as bar:

        def report(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        whole = convert(model, report)
    target = model / f"model-{kind}.gguf"
    if target == whole or (target.is_file() and target.stat().st_mtime > whole.stat().st_mtime):
        return target
    partial = target.with_suffix(".partial")
    _run([str(programs / QUANTIZE), str(whole), str(partial), kind], f"llama.cpp cannot make {target.name}")
    partial.replace(target)
    return target


def measure(programs: Path, file: Path, load: Load, threads: int, environment: Mapping[str, str]) -> list[StepEnd]:
    """Runs a load in llama-batched-bench, with random tokens and without sampling; returns when each step ended."""
    numbers = {
        "-t": threads,
        "-c": load.streams * (load.prompt_tokens + load.max_tokens),
        "-npp": load.prompt_tokens,
        "-ntg": max(1, load.max_tokens - 1),
        "-npl": load.streams,
    }
    flags = [text for flag, number in numbers.items() for text in (flag, str(number))]
    done = subprocess.run(
        [programs / BENCH, "-m", file, "--output-format", "jsonl", *flags],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        raise SystemExit(f"{BENCH} failed; it said:\n{done.stderr[-3000:]}")
    return step_ends(json.loads(lines[-1]), load)


def step_ends(figures: dict[str, Any], load: Load) -> list[StepEnd]:
    """Returns what llama-batched-bench measured as the ends of steps, which are taken to be equally long."""
    prefill, each = figures["t_pp"], figures["t_tg"] / figures["tg"]
    return [(prefill + each * index, load.streams) for index in range(load.max_tokens)]
