"""Runs a server in a process group of its own, over real sockets; nothing of it survives the test."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.server.vocab import CHATML, byte_level
from tests.tiny import write_tiny_checkpoint

ROOT = Path(__file__).parents[2]
PATIENCE = 120  # seconds; the machine may be busy
FOREVER = 10**8  # tokens
MODEL = "tiny"


def until(condition: Callable[[], bool], what: str) -> float:
    """Waits until the condition holds; returns the seconds that this took."""
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < PATIENCE, f"gave up waiting until {what}"
        time.sleep(0.01)
    return time.monotonic() - begun


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def write_tokenizer(directory: Path) -> None:
    """Writes a tokenizer whose ids are bytes, from 3 on."""
    byte_level().backend.save(str(directory / "tokenizer.json"))
    tokenizer_config = {"chat_template": CHATML, "bos_token": "<s>", "eos_token": "</s>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(tokenizer_config), encoding="utf-8")


def write_model(directory: Path, **overrides: Any) -> Path:
    """Writes a whole checkpoint: tiny random weights and a tokenizer of bytes. See write_tiny_checkpoint."""
    write_tiny_checkpoint(directory, vocab_size=264, **overrides)
    write_tokenizer(directory)
    return directory


@dataclass
class Server:
    """A Server is a running `octavo serve`."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path
    lives: Path  # the file with the process ids of the fake engines that were started, one a line

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def output(self) -> str:
        return self.log.read_text(encoding="utf-8")

    def engine_pids(self) -> list[int]:
        return [int(line) for line in self.lives.read_text().split()] if self.lives.exists() else []

    def release(self, name: str) -> None:
        """Lets a fake engine go on where it is held: see Behaviour.held."""
        self.lives.with_name(name).touch()

    def health(self) -> int:
        """Returns the status of /health; 0 while nobody listens."""
        try:
            return httpx.get(f"{self.url}/health", timeout=PATIENCE).status_code
        except httpx.TransportError:
            return 0

    def port_is_taken(self) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
            return True
        return False

    def wait_for_health(self, status: int) -> float:
        def reached() -> bool:
            assert self.process.poll() is None, self.output
            return self.health() == status

        return until(reached, f"/health answers {status}")

    def metric(self, name: str) -> float:
        for line in httpx.get(f"{self.url}/metrics", timeout=PATIENCE).text.splitlines():
            if line.startswith(f"octavo:{name}"):
                return float(line.rpartition(" ")[2])
        raise AssertionError(f"there is no metric {name}")

    def wait_for_load(self, running: int, waiting: int = 0) -> float:
        def reached() -> bool:
            return (self.metric("num_requests_running"), self.metric("num_requests_waiting")) == (running, waiting)

        return until(reached, f"{running} requests run and {waiting} wait")

    def send_signal(self, number: signal.Signals) -> None:
        """Sends a signal as users do: Ctrl-C reaches every process of the group, SIGTERM the server alone."""
        if number is signal.SIGINT:
            os.killpg(self.process.pid, number)
        else:
            self.process.send_signal(number)

    def exit_status(self) -> int:
        return self.process.wait(PATIENCE)

    def wait_until_nothing_is_left(self) -> float:
        return until(lambda: not _alive(self.process.pid), "every process of the group has ended")


def children_of(parent: int) -> list[int]:
    """Returns the ids of the processes that a process has started."""
    return [pid for pid, _, of, _ in _processes() if of == parent]


def _alive(group: int) -> bool:
    """Returns whether the group has a process that is no zombie. In a container, nobody may reap orphans."""
    return any(of == group and state not in "ZX" for _, state, _, of in _processes())


def _processes() -> Iterator[tuple[int, str, int, int]]:
    """Yields process id, state, parent and process group of every process."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, parent, group = path.read_text().rpartition(")")[2].split()[:3]
            yield int(path.parent.name), state, int(parent), int(group)


@contextmanager
def started(
    command: Sequence[str | Path], directory: Path, environment: dict[str, str] | None = None
) -> Iterator[Server]:
    """Runs `python COMMAND` with a free port; afterwards kills what is left of its process group."""
    log, port = directory / "log", free_port()
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, *map(str, command)] + ([] if "--port" in command else ["--port", str(port)]),
            cwd=ROOT,
            env=os.environ | (environment or {}),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    try:
        yield Server(process, port, log, directory / "lives")
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def fake_server(directory: Path, *flags: str, **behaviour: Any) -> AbstractContextManager[Server]:
    """Runs `octavo serve` with the engine of tests/fake_engine.py; only the weights of its model are missing."""
    model = write_tiny_checkpoint(directory / MODEL, vocab_size=264)
    write_tokenizer(model)
    (model / "model.safetensors").unlink()
    chosen = {"vocabulary": 100, "max_model_len": 2 * FOREVER, "lives": str(directory / "lives")} | behaviour
    return started(["tests/e2e/serve_fake.py", json.dumps(chosen), "serve", model, *flags], directory)
