"""The processes that are measured: started under one policy, asked when they are ready, ended for certain."""

import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common.memory import watch

START_LIMIT = 600  # seconds
STOP_LIMIT = 30
POLL = 0.1

# As `octavo serve` starts its engine: OpenMP threads that spin for long would take the cores from the others.
ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "10000"}


@dataclass(frozen=True, slots=True)
class Start:
    """What it took until a process was ready."""

    seconds: float
    anonymous: int  # bytes at most: RssAnon
    resident: int  # the same with mapped files


@dataclass(frozen=True, slots=True)
class Server:
    """One that is ready."""

    port: int
    process: int
    start: Start


@contextmanager
def octavo_server(model: str, arguments: Sequence[str], log: Path) -> Iterator[Server]:
    """Octavo's own."""
    with http_server([sys.executable, "-m", "octavo", "serve", model, *arguments], log) as server:
        yield server


@contextmanager
def http_server(command: Sequence[str], log: Path, environment: Mapping[str, str] = ENVIRONMENT) -> Iterator[Server]:
    """Any that takes --port and answers GET /health with 200 when it is ready."""
    port, start = _free_port(), time.monotonic()
    with (
        log.open("wb") as output,
        _running([*command, "--port", str(port)], environment, stdout=output, stderr=subprocess.STDOUT) as process,
    ):
        with watch(process.pid) as peak:
            while not _healthy(port):
                if process.poll() is not None or time.monotonic() > start + START_LIMIT:
                    raise SystemExit(f"The server did not start; it said:\n{log.read_text(errors='replace')[-3000:]}")
                time.sleep(POLL)
        yield Server(port, process.pid, Start(time.monotonic() - start, peak.anonymous, peak.resident))


@contextmanager
def json_lines(command: Sequence[str]) -> Iterator["JsonLines"]:
    """A process that answers each line of JSON on its stdin with one on its stdout."""
    with _running(command, ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield JsonLines(process)


class JsonLines:
    """Talks to a process that answers each line of JSON with one."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    @property
    def process(self) -> int:
        return self._process.pid

    def ask(self, question: Any) -> Any:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended, which read() will say
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        return self.read()

    def read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("A process that is measured has ended; its own message is above.")
        return json.loads(line)


@contextmanager
def _running(command: Sequence[str], environment: Mapping[str, str], **pipes: Any) -> Iterator["subprocess.Popen[Any]"]:
    process = subprocess.Popen(command, env={**os.environ, **environment}, **pipes)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):  # a line that nobody read any more
                    pipe.close()


def _healthy(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
