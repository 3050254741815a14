"""Under emulation of 64-bit ARM, results.c prints on each instruction set what it prints here."""

import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

import octavo.model.kernels.cpu.library as kernels

COMPILER, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64-static"
ROOT = Path(__file__).parents[4]
SOURCE, HEADERS = Path(__file__).with_name("results.c"), Path(kernels.__file__).parent

pytestmark = [
    pytest.mark.skipif(
        not all(map(shutil.which, ("cc", COMPILER, EMULATOR))), reason=f"there is no cc, {COMPILER} or {EMULATOR}"
    ),
    pytest.mark.skipif(kernels.library() is None, reason="the C kernels were not built"),
]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Builds the program for 64-bit ARM with pyproject.toml's options, except for optimisation, which takes long."""
    (extension,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["ext-modules"]
    target = tmp_path_factory.mktemp("arm") / "results"
    sources = (ROOT / source for source in extension["sources"])
    options = *extension["extra-compile-args"], "-O1", "-Werror", "-static", "-pthread"
    run(COMPILER, *options, f"-I{HEADERS}", SOURCE, *sources, "-lm", "-o", target)
    return target


def test_every_level_gives_the_bits_that_it_gives_here(program: Path, tmp_path: Path) -> None:
    here = tmp_path / "results"
    run("cc", "-std=c11", f"-I{HEADERS}", SOURCE, kernels.find(), f"-Wl,-rpath,{HEADERS}", "-o", here)
    expected = results(here, emulator=())
    plain = expected["portable"]
    assert len(plain) == 71
    assert expected == dict.fromkeys(expected, plain)
    assert results(program) == dict.fromkeys(("portable", "neon"), plain)


def test_a_processor_without_the_dot_products_takes_the_portable_level(program: Path) -> None:
    assert set(results(program, emulator=(EMULATOR, "-cpu", "cortex-a72"))) == {"portable"}


def results(program: Path, emulator: tuple[str, ...] = (EMULATOR,)) -> dict[str, list[str]]:
    """Returns what the program prints, by instruction set."""
    by_level: dict[str, list[str]] = {}
    for line in run(*emulator, program).splitlines():
        level, _, rest = line.partition(" ")
        by_level.setdefault(level, []).append(rest)
    return by_level


def run(*command: Path | str | None) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
