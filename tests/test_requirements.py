"""The lock in requirements/ covers all that pyproject.toml asks for, and says nothing of where it comes from."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
REQUIREMENTS = ROOT / "requirements"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = {"serve.txt": ("demo",), "dev.txt": ("demo", "oracle", "bench", "dev")}
BY_VERSION = re.compile(r"(torch|triton)$|(nvidia|cuda)-")  # their builds differ from index to index
CPU_BUILDS = "https://download.pytorch.org/whl/cpu"

each_lock = pytest.mark.parametrize("name", EXTRAS)


def locked(name: str) -> list[tuple[Requirement, list[str]]]:
    """Returns the entries of a lock: what is required, and the hashes of its files."""
    text = (REQUIREMENTS / name).read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line.split(" --hash=") for line in text.splitlines() if not line.startswith("#")]
    return [(Requirement(line[0]), [each.strip() for each in line[1:]]) for line in lines]


def asked_for(name: str) -> list[Requirement]:
    extras = PROJECT["optional-dependencies"]
    return [Requirement(line) for line in (*PROJECT["dependencies"], *(i for e in EXTRAS[name] for i in extras[e]))]


@each_lock
def test_every_entry_has_one_version_and_hashes_and_no_address(name: str) -> None:
    for requirement, hashes in locked(name):
        assert [each.operator for each in requirement.specifier] == ["=="] and requirement.url is None
        assert hashes and all(re.fullmatch(r"sha256:[0-9a-f]{64}", each) for each in hashes), requirement
    text = (REQUIREMENTS / name).read_text(encoding="utf-8")
    assert not re.search(r"://|file:|--(?!hash=)|\.(org|com|io|net)\b", text)


@each_lock
def test_builds_that_differ_by_index_are_not_locked(name: str) -> None:
    assert [each.name for each, _ in locked(name) if BY_VERSION.match(each.name)] == []


@each_lock
def test_what_is_asked_for_is_locked_in_a_version_that_fits(name: str) -> None:
    entries = [requirement for requirement, _ in locked(name)]
    for wanted in asked_for(name):
        found = [each for each in entries if canonicalize_name(each.name) == canonicalize_name(wanted.name)]
        assert found or BY_VERSION.match(wanted.name), f"{wanted}: run `make lock`"
        for each in found:
            (version,) = each.specifier
            assert wanted.specifier.contains(version.version), f"{wanted} is locked as {each}: run `make lock`"


@each_lock
def test_what_they_need_in_turn_is_locked_too(name: str) -> None:
    """pip installs the lock without dependencies, so it would not miss any."""
    entries = {canonicalize_name(requirement.name) for requirement, _ in locked(name)}
    missing = {needed for needed in closure(asked_for(name)) if not BY_VERSION.match(needed)} - entries
    assert missing == set()


def closure(wanted: Iterable[Requirement]) -> set[str]:
    """Returns the names of all distributions that are needed on this platform, as those that are installed say it."""
    seen: set[tuple[str, str]] = set()
    open_ends = list(wanted)
    while open_ends:
        requirement = open_ends.pop()
        for extra in ("", *requirement.extras):
            if (key := (canonicalize_name(requirement.name), extra)) not in seen:
                seen.add(key)
                open_ends += needs(requirement.name, extra)
    return {name for name, _ in seen}


def needs(name: str, extra: str) -> Iterator[Requirement]:
    try:
        found = [Requirement(line) for line in requires(name) or ()]
    except PackageNotFoundError:  # triton, where there is none
        return
    yield from (each for each in found if each.marker is None or each.marker.evaluate({"extra": extra}))


def test_the_versions_that_stand_in_several_files_are_the_same() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")
    (torch,) = re.findall(r"^TORCH +\?= torch==(\S+)$", makefile, re.MULTILINE)
    assert f"ARG TORCH_VERSION={torch}\n" in dockerfile
    (triton,) = re.findall(r"^TRITON +\?= (.+)$", makefile, re.MULTILINE)
    assert triton in PROJECT["optional-dependencies"]["dev"]
    assert CPU_BUILDS in dockerfile


class Machine:
    """A Machine is a directory for PATH with fake programs: uname, nvidia-smi, and a Python for pip and the probe."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.program("uname", "echo Linux")
        self.python()

    def program(self, name: str, body: str) -> None:
        (self.directory / name).write_text(f"#!/bin/sh\n{body}\n")
        (self.directory / name).chmod(0o755)

    def python(self, configured: str = "", answers: bool = True) -> None:
        self.program("python", f'test "$1" = -c && exit {int(not answers)}\necho "{configured}"')

    def index(self) -> str:
        command = ["/bin/sh", REQUIREMENTS / "torch-index", self.directory / "python"]
        path = f"{self.directory}{os.pathsep}/usr/bin{os.pathsep}/bin"
        done = subprocess.run(command, env={"PATH": path}, capture_output=True, text=True, check=True)
        assert done.stderr == ""
        return done.stdout.strip()


has_driver = Path("/proc/driver/nvidia").exists() or shutil.which("nvidia-smi") is not None


@pytest.mark.skipif(has_driver, reason="this machine has a driver of NVIDIA's")
def test_without_a_driver_torch_comes_from_the_index_of_cpu_builds(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    assert machine.index() == CPU_BUILDS
    machine.python(configured="global.timeout='60'")
    assert machine.index() == CPU_BUILDS


def test_with_a_driver_or_on_another_system_pip_is_left_alone(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.program("nvidia-smi", "exit 0")
    assert machine.index() == ""
    machine = Machine(tmp_path)
    machine.program("uname", "echo Darwin")
    assert machine.index() == ""


@pytest.mark.parametrize(
    "configured", ["global.index-url='x'", ":env:.extra-index-url='x'", "global.no-index='1'", ":env:.find-links='x'"]
)
def test_where_the_users_pip_has_an_index_of_its_own_it_is_left_alone(tmp_path: Path, configured: str) -> None:
    machine = Machine(tmp_path)
    machine.python(configured)
    assert machine.index() == ""


def test_where_the_index_does_not_answer_pip_is_left_alone(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.python(answers=False)
    assert machine.index() == ""


def test_the_script_runs_with_this_environments_python() -> None:
    """Whatever it finds here, it ends well and says nothing else."""
    done = subprocess.run([REQUIREMENTS / "torch-index", sys.executable], capture_output=True, text=True, check=True)
    assert done.stdout.strip() in {"", CPU_BUILDS}


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
@pytest.mark.parametrize(("given", "options"), [(CPU_BUILDS, ["--extra-index-url", CPU_BUILDS]), ("", [])])
def test_make_gives_pip_the_index_for_torch(tmp_path: Path, given: str, options: list[str]) -> None:
    """The environment's Python is a script that notes its arguments."""
    calls = tmp_path / "calls"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text(f'#!/bin/sh\necho "$@" >> {calls}\n')
    (tmp_path / "bin" / "python").chmod(0o755)
    command = ["make", f"VENV={tmp_path}", f"TORCH_INDEX={given}", "TORCH=torch==1", str(tmp_path / ".core")]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    torch, lock, octavo = calls.read_text().splitlines()
    assert torch.split()[-1 - len(options) :] == [*options, "torch==1"]
    assert "--require-hashes" in lock and octavo.endswith("--editable .")
