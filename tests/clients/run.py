"""Runs real clients against a live server on the default model, for `make test-clients`.

Each client has an environment of its own, since their packages do not go together: LiteLLM wants openai below 3,
Pydantic AI above. Each script names what it needs in its first lines, as Python's inline script metadata or an npm
comment. The model is tiny: scripts judge the form of answers, never their wording.
"""

import re
import shutil
import subprocess
import sys
import tomllib
import venv
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.e2e.harness import ROOT, Server, started, until

HERE = Path(__file__).parent
CACHE = ROOT / ".clients"
FLAGS = ("--served-model-name", "tiny", "--max-model-len", "4096")
SCRIPT_SECONDS = 600


def main(names: Sequence[str]) -> int:
    """Runs the named scripts, or all; returns the number that failed."""
    scripts = [path for path in sorted(HERE.glob("with_*")) if not names or path.stem in names or path.name in names]
    CACHE.mkdir(exist_ok=True)
    commands = {path: _prepared(path) for path in scripts}
    subprocess.run([sys.executable, "-m", "octavo", "demo-model"], cwd=ROOT, check=True)  # the model is built once
    with TemporaryDirectory() as directory, started(["-m", "octavo", "serve", *FLAGS], Path(directory)) as server:
        _wait(server)
        failed = [path.name for path, command in commands.items() if not _passes(path.name, command, server)]
        if "Traceback" in server.output:
            failed.append("the server, which logged a traceback")
            print(server.output)
    print(f"{len(scripts)} clients; failed: {', '.join(failed) or 'none'}")
    return len(failed)


def _wait(server: Server) -> None:
    """Waits in several steps, since loading takes longer than the harness waits for one state."""
    until(server.port_is_taken, "the server listens")
    until(lambda: "measuring steps" in server.output, "the weights are loaded")
    server.wait_for_health(200)


def _passes(name: str, command: Sequence[str | Path], server: Server) -> bool:
    print(name, flush=True)
    return subprocess.run([*command, server.url, "tiny"], timeout=SCRIPT_SECONDS, check=False).returncode == 0


def _prepared(script: Path) -> list[str | Path]:
    """Installs what the script needs, unless that was done before; returns the command that runs it."""
    home = CACHE / script.name
    needs = _python_needs(script) if script.suffix == ".py" else _node_needs(script)
    python = home / "bin" / "python"
    if not (home / "needs").exists() or (home / "needs").read_text() != "\n".join(needs):
        print(f"installing {', '.join(needs)} for {script.name}", flush=True)
        shutil.rmtree(home, ignore_errors=True)
        if script.suffix == ".py":
            venv.create(home, with_pip=True)
            pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            subprocess.run([*pip, *needs], check=True)
        else:
            home.mkdir()
            subprocess.run(["npm", "install", "--silent", "--prefix", home, *needs], check=True)
        (home / "needs").write_text("\n".join(needs))
    if script.suffix == ".py":
        return [python, script]
    for source in (script, HERE / "report.mjs"):  # node looks for packages beside the script
        shutil.copy(source, home)
    return ["node", home / script.name]


def _python_needs(script: Path) -> list[str]:
    block = re.search(r"^# /// script\n(.*?)^# ///$", script.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert block is not None, f"{script.name} does not say what it needs"
    needs: list[str] = tomllib.loads(re.sub(r"^# ?", "", block[1], flags=re.MULTILINE))["dependencies"]
    return needs


def _node_needs(script: Path) -> list[str]:
    found = re.match(r"// npm: (.+)\n", script.read_text(encoding="utf-8"))
    assert found is not None, f"{script.name} does not say what it needs"
    return found[1].split()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
