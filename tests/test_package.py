"""octavo/ is the one import name: it finds its parts, or says why not, and leaves the names of users' modules alone."""

import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from octavo import __version__
from octavo.__main__ import PARTS, check_links
from tests.e2e.harness import PATIENCE, ROOT, started, write_model

# Python runs a sitecustomize.py on its path in each process, here also in those that multiprocessing spawns.
RECORDER = """
import os, sys
record = open(f"{os.path.dirname(__file__)}/{os.getpid()}.imports", "a", buffering=1)
sys.addaudithook(lambda event, args: record.write(args[0] + "\\n") if event == "import" else None)
"""


def test_the_repository_has_its_links() -> None:
    check_links(ROOT / "octavo")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Makes a copy of octavo/ without its links."""
    package = tmp_path / "octavo"
    package.mkdir()
    for name in ("__init__.py", "__main__.py"):
        shutil.copy(ROOT / "octavo" / name, package)
    return package


def test_a_copy_without_links_is_told_in_one_sentence(copy: Path) -> None:
    (copy / "server").write_text("../server")  # git writes a link so where the system has none
    (copy / "engine").mkdir()  # a copy of the folder alone
    done = octavo("--version", directory=copy.parent)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith(f"octavo: {copy} has no server and no engine and no model in it, because")


@pytest.mark.parametrize("lost", PARTS)
def test_the_part_that_is_lost_is_named(copy: Path, lost: str) -> None:
    for part in set(PARTS) - {lost}:
        (copy / part).symlink_to(ROOT / part)
    with pytest.raises(SystemExit, match=f"has no {lost} in it"):
        check_links(copy)


def test_nothing_is_built_from_a_copy_without_links(copy: Path) -> None:
    """An empty wheel would install, and fail only when somebody uses it."""
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy.parent)
    code = "from setuptools import build_meta; build_meta.build_wheel('.')"
    done = subprocess.run([sys.executable, "-c", code], cwd=copy.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "has no server and no engine and no model in it, because" in done.stderr.splitlines()[-1]


def test_a_user_may_have_modules_of_those_names(tmp_path: Path) -> None:
    for part in PARTS:
        (tmp_path / f"{part}.py").write_text("raise SystemExit('this is the module of a user')")
    (tmp_path / "octavo").symlink_to(ROOT / "octavo")
    done = octavo("--version", directory=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"octavo {__version__}\n", "")


def octavo(*arguments: str, directory: Path) -> "subprocess.CompletedProcess[str]":
    """Runs `python -m octavo` in a directory, which comes first on Python's path."""
    command = [sys.executable, "-m", "octavo", *arguments]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)


def test_no_process_loads_a_part_under_another_name(tmp_path: Path) -> None:
    """The API's, the engine's and the checker's process import no part of octavo/ under another name.

    A class that is imported under two names exists twice, and then messages between processes do not match.
    """
    records = tmp_path / "records"
    records.mkdir()
    (records / "sitecustomize.py").write_text(RECORDER)
    command = ["-m", "octavo", "serve", write_model(tmp_path / "tiny"), "--kv-cache-memory", "1MiB"]
    with started(command, tmp_path, {"PYTHONPATH": str(records)}) as server:
        server.wait_for_health(200)
        body = {"model": "tiny", "prompt": "a", "max_tokens": 2, "guided_regex": "[ab]+"}
        answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=PATIENCE)
        assert answer.status_code == 200, answer.text
        imported = [set(record.read_text().split()) for record in records.glob("*.imports")]
    for module in ("octavo.server.app", "octavo.engine.engine", "octavo.engine.compute.compiler"):
        assert any(module in names for names in imported), f"no process has imported {module}"
    assert len([names for names in imported if "octavo.engine" in names]) >= 3
    assert [name for names in imported for name in names if name.partition(".")[0] in PARTS] == []
