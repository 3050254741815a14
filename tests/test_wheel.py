"""The sdist holds all that the wheel is built from, and the wheel is all that is needed to serve, outside the clone."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import time
import venv
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from octavo import __version__
from octavo.__main__ import PARTS
from tests.e2e.harness import PATIENCE, ROOT, free_port, write_model

MINE = "OWNER = 'the user'\n"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copies what is built, because a build leaves files beside its source."""
    source = tmp_path_factory.mktemp("source")
    for name in ("octavo", *PARTS):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    return source


@pytest.fixture(scope="module")
def sdist(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("sdist")
    code = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    run(sys.executable, "-c", code, str(directory), cwd=source)
    return next(directory.glob("*.tar.gz"))


@pytest.fixture(scope="module")
def wheel(sdist: Path) -> Path:
    """Builds the wheel from the sdist, as a package index's users do."""
    return build_wheel(sdist, sdist.parent)


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a virtual environment that has the wheel, and a user's packages with the names of our folders.

    What the wheel depends on is borrowed from the environment of the tests.
    """
    root = tmp_path_factory.mktemp("environment") / "venv"
    venv.create(root, with_pip=False, symlinks=True)
    pip("--python", str(root), "install", "--no-deps", "--no-index", str(wheel))
    # A path in a .pth file is searched last, and .pth files of that path are not read: an editable clone stays hidden.
    borrowed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site_packages,) = root.glob("lib/python*/site-packages")
    (site_packages / "borrowed.pth").write_text("\n".join(sorted(borrowed)))
    for part in PARTS:
        assert not (site_packages / part).exists()
        (site_packages / part).mkdir()
        (site_packages / part / "__init__.py").write_text(MINE)
    return root


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """Returns a directory in which a user keeps a server.py."""
    (tmp_path / "server.py").write_text(MINE)
    return tmp_path


def test_the_sdist_holds_every_file_and_no_link(source: Path, sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        files = {member.name.partition("/")[2]: member for member in archive.getmembers() if not member.isdir()}
    assert all(member.isreg() for member in files.values())
    assert sources(source) - files.keys() == set()
    assert {"pyproject.toml", "setup.py", "README.md", "LICENSE"} <= files.keys()


def test_the_wheel_holds_every_file_and_no_other_package(source: Path, wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert sources(source) - names == set()
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"octavo"}
    assert sum(name.endswith("licenses/LICENSE") for name in names) == 1


def test_a_wheel_from_the_clone_itself_and_without_a_compiler_is_the_same(
    source: Path, wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lacks the compiled kernels and nothing else."""
    monkeypatch.setenv("CC", "false")
    names = [set(zipfile.ZipFile(each).namelist()) for each in (wheel, build_wheel(source, tmp_path))]
    files, without_kernels = ({name for name in each if name.startswith("octavo/")} for each in names)
    assert not any(name.endswith(".so") for name in without_kernels)
    assert {name for name in files if not name.endswith(".so")} == without_kernels


def test_everything_comes_from_the_wheel(environment: Path, workplace: Path) -> None:
    code = """
import importlib.resources, json
from octavo import engine, model, server
licenses = importlib.resources.files(model) / "demo" / "licenses"
print(json.dumps([engine.__file__, model.__file__, server.__file__, (licenses / "LICENSE.txt").read_text()[:99]]))
"""
    *files, text = json.loads(run(environment / "bin" / "python", "-c", code, cwd=workplace))
    assert all(Path(file).is_relative_to(environment) for file in files)
    assert "Apache License" in text


def test_a_users_packages_stay_the_users(environment: Path, workplace: Path) -> None:
    """A module in the working directory comes before a package in site-packages, and ours before neither."""
    code = """
import json
from octavo import engine as _, model as _, server as _
import engine, model, server
print(json.dumps([[each.OWNER, each.__file__] for each in (server, engine, model)]))
"""
    found = json.loads(run(environment / "bin" / "python", "-c", code, cwd=workplace))
    assert [owner for owner, _ in found] == ["the user"] * 3
    assert [Path(file).name for _, file in found] == ["server.py", "__init__.py", "__init__.py"]


def test_script_and_module_know_their_version(environment: Path, workplace: Path) -> None:
    python = environment / "bin" / "python"
    for command in ([environment / "bin" / "octavo"], [python, "-m", "octavo"]):
        assert run(*command, "--version", cwd=workplace) == f"octavo {__version__}\n"


def test_it_serves_beside_a_users_own_server(environment: Path, workplace: Path) -> None:
    checkpoint = write_model(workplace / "tiny")
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": 8,
        "stream": True,
    }
    with serving(environment, checkpoint) as url:
        answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=PATIENCE)
        page = httpx.get(f"{url}/", timeout=PATIENCE)
        files = [httpx.get(f"{url}/{path}", timeout=PATIENCE) for path in re.findall(r'"(web/[^"]+)"', page.text)]
    assert {file.status_code for file in (page, *files)} == {200}
    assert len(files) >= 5
    assert answer.status_code == 200
    events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
    assert events.pop() == "[DONE]"
    assert json.loads(events[-1])["choices"][0]["finish_reason"] in {"length", "stop"}


@contextmanager
def serving(environment: Path, checkpoint: Path) -> Iterator[str]:
    """Runs the console script in the directory that holds the checkpoint; it must end well."""
    port = free_port()
    command = [environment / "bin" / "octavo", "serve", checkpoint, "--port", str(port)]
    log = checkpoint.parent / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=checkpoint.parent, env=clean(), stdout=output, stderr=subprocess.STDOUT)
        try:
            wait_until_healthy(process, f"http://127.0.0.1:{port}", log)
            yield f"http://127.0.0.1:{port}"
            process.terminate()
            assert process.wait(PATIENCE) == 0, log.read_text()
        finally:
            process.kill()
            process.wait()


def wait_until_healthy(process: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            if httpx.get(f"{url}/health", timeout=PATIENCE).status_code == 200:
                return
        except httpx.TransportError:
            pass  # not listening yet
        time.sleep(0.05)
    pytest.fail(f"never healthy; the log says: {log.read_text()}")


def clean() -> dict[str, str]:
    """Returns the environment without the variables that would lead an interpreter back to the clone."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "OCTAVO_"))}


def sources(root: Path) -> set[str]:
    """Returns the names of all files of the package, as an archive has them."""
    return {f"octavo/{path.name}" for path in (root / "octavo").glob("*.py")} | {
        f"octavo/{path.relative_to(root).as_posix()}"
        for part in PARTS
        for path in (root / part).rglob("*")
        if path.is_file()
    }


def build_wheel(source: Path, directory: Path) -> Path:
    """Builds it from a directory or an sdist, with the setuptools of this environment."""
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(directory), str(source))
    return next(directory.glob("*.whl"))


def pip(*arguments: str) -> None:
    run(sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments, cwd=ROOT.parent)


def run(*command: Path | str, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, env=clean(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
