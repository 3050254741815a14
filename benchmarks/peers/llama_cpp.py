"""Runs llama.cpp or ik_llama.cpp as a peer: makes its files, and runs its own benchmark."""

import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tqdm import tqdm

from benchmarks.common.llama_programs import BENCH, IK_LLAMA_CPP, QUANTIZE, SERVER, Project, run
from benchmarks.common.loads import Load, StepEnd
from benchmarks.peers.gguf_file import convert

# A policy says how OpenMP's threads wait at the barriers between operations. By default libgomp lets them spin for so
# long that a step takes many times as long whenever another process has a core; a bounded spin is as fast without that.
POLICIES: dict[str, Mapping[str, str]] = {
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    "spinning briefly": {"GOMP_SPINCOUNT": "100000"},
}
# ik_llama.cpp's products are fastest if rows lie interleaved; it reorders them while it loads a file.
REPACK = ("--run-time-repack",)


@dataclass(frozen=True, slots=True)
class LlamaCpp:
    """A LlamaCpp is one of the two projects, with the directory of its programs."""

    project: Project
    programs: Path

    @property
    def server(self) -> tuple[str, ...]:
        """Returns the server's command, without a model."""
        return (str(self.programs.resolve() / SERVER), *self._flags)

    @property
    def _flags(self) -> tuple[str, ...]:
        return REPACK if self.project is IK_LLAMA_CPP else ()

    def file_of(self, model: Path, kind: str) -> Path:
        """Returns the model as a GGUF file of a type such as F16 or Q8_0, which is made when it is first needed."""
        whole = _converted(model)
        if kind == "F16":
            return whole
        target = model / f"model-{kind}-{self.project.name}.gguf"
        if target.is_file() and target.stat().st_mtime > whole.stat().st_mtime:
            return target
        partial = target.with_suffix(".partial")
        run([self.programs / QUANTIZE, whole, partial, kind], f"{self.project.name} cannot make {target.name}")
        partial.replace(target)
        return target

    def measure(self, file: Path, load: Load, threads: int, environment: Mapping[str, str]) -> list[StepEnd]:
        """Runs a load in llama-batched-bench, with random tokens and without sampling; returns when each step ended."""
        numbers = {
            "-t": threads,
            "-c": load.streams * (load.prompt_tokens + load.max_tokens),
            "-npp": load.prompt_tokens,
            "-ntg": max(1, load.max_tokens - 1),
            "-npl": load.streams,
        }
        flags = [text for flag, number in numbers.items() for text in (flag, str(number))]
        command: list[str | Path] = [(self.programs / BENCH).resolve(), "-m", file.resolve(), *self._flags, *flags]
        with TemporaryDirectory() as scratch:  # ik_llama.cpp writes a log where it runs
            done = subprocess.run(
                command, cwd=scratch, capture_output=True, text=True, check=False, env={**os.environ, **environment}
            )
        figures = table_row(done.stdout + "\n" + done.stderr)
        if done.returncode or figures is None:
            raise SystemExit(f"{self.project.name}'s {BENCH} failed; it said:\n{done.stderr[-3000:]}")
        return step_ends(figures, load)


def _converted(model: Path) -> Path:
    bar: tqdm[Any]
    with tqdm(desc="GGUF file", unit="B", unit_scale=True, dynamic_ncols=True, disable=None) as bar:

        def report(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        return convert(model, report)


ROW = re.compile(r"^\|((?: *[\d.]+ *\|){10})$", re.MULTILINE)
COLUMNS = ("PP", "TG", "B", "N_KV", "T_PP s", "S_PP t/s", "T_TG s", "S_TG t/s", "T s", "S t/s")


def table_row(output: str) -> dict[str, float] | None:
    """Returns the last row of llama-batched-bench's table by the names of its columns; None if there is none.

    llama.cpp writes the table to stdout, and ik_llama.cpp writes it to stderr.
    """
    rows = ROW.findall(output)
    return dict(zip(COLUMNS, map(float, rows[-1].rstrip("|").split("|")), strict=True)) if rows else None


def step_ends(figures: Mapping[str, float], load: Load) -> list[StepEnd]:
    """Returns what llama-batched-bench measured as the ends of steps, which are taken to be equally long."""
    prefill, each = figures["T_PP s"], figures["T_TG s"] / figures["TG"]
    return [(prefill + each * index, load.streams) for index in range(load.max_tokens)]
