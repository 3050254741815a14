"""The wheel is all that is needed: installed outside the clone, it serves."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.e2e.harness import PATIENCE, free_port, write_model

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh virtual environment with the wheel in it; what the wheel depends on is borrowed from this one."""
    root = tmp_path_factory.mktemp("wheel")
    source = root / "source"  # a copy, because a build leaves files beside its source
    for name in ("octavo", "server", "engine", "model"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(root), str(source))
    (wheel,) = root.glob("*.whl")
    venv.create(root / "venv", with_pip=False, symlinks=True)
    pip("--python", str(root / "venv"), "install", "--no-deps", "--no-index", str(wheel))
    # A path in a .pth file is searched last, and .pth files of that path are not read: an editable clone stays hidden.
    borrowed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site_packages,) = (root / "venv").glob("lib/python*/site-packages")
    (site_packages / "borrowed.pth").write_text("\n".join(sorted(borrowed)))
    return root / "venv"


def test_everything_comes_from_the_wheel(environment: Path, tmp_path: Path) -> None:
    code = """
import importlib.resources, json
from octavo import engine, model, server
licenses = importlib.resources.files(model) / "demo" / "licenses"
print(json.dumps([engine.__file__, model.__file__, server.__file__, (licenses / "LICENSE.txt").read_text()[:99]]))
"""
    *files, text = json.loads(run(environment / "bin" / "python", "-c", code, cwd=tmp_path))
    assert all(Path(file).is_relative_to(environment) for file in files)
    assert "Apache License" in text


def test_console_script_knows_its_version(environment: Path, tmp_path: Path) -> None:
    assert run(environment / "bin" / "octavo", "--version", cwd=tmp_path).startswith("octavo 0.")


def test_it_serves(environment: Path, tmp_path: Path) -> None:
    checkpoint = write_model(tmp_path / "tiny")
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
    """Runs the console script from a directory that is not the clone; it must end well."""
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
    """Without what would lead an interpreter back to the clone."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "OCTAVO_"))}


def pip(*arguments: str) -> None:
    run(sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments, cwd=ROOT.parent)


def run(*command: Path | str, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, env=clean(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
