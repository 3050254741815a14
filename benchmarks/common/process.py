"""Runs the processes that are measured: starts them, asks them when they are ready, watches their memory, ends them."""

import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

START_LIMIT = 600  # seconds
STOP_LIMIT = 30  # seconds
POLL = 0.1  # seconds between two looks at a server that starts
INTERVAL = 0.05  # seconds between two looks at memory: loading a model takes many

# `octavo serve` starts its engine with these, too: OpenMP threads that spin for long would take cores from others.
ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "10000"}


@dataclass(frozen=True, slots=True)
class Start:
    """A Start is what it took until a process was ready."""

    seconds: float
    anonymous: int  # bytes at most: RssAnon
    resident: int  # bytes at most, with mapped files: VmRSS


@dataclass(frozen=True, slots=True)
class Server:
    """A Server is a process that is ready to be asked over HTTP."""

    port: int
    process: int
    start: Start


@contextmanager
def octavo_server(model: str, arguments: Sequence[str], log: Path) -> Iterator[Server]:
    """Runs `octavo serve`, which leaves no tile file: writing one would slow what is measured."""
    command = [sys.executable, "-m", "octavo", "serve", model, "--prepare", "never", *arguments]
    with http_server(command, log) as server:
        yield server


@contextmanager
def http_server(
    command: Sequence[str], log: Path, environment: Mapping[str, str] = ENVIRONMENT, directory: Path | None = None
) -> Iterator[Server]:
    """Runs a server, in the directory, that takes --port and answers GET /health with 200 when it is ready.

    Raises SystemExit, with the end of its log, if the server ends or is not ready in time.
    """
    port, start = _free_port(), time.monotonic()
    with (
        log.open("wb") as output,
        _running(
            [*command, "--port", str(port)], environment, stdout=output, stderr=subprocess.STDOUT, cwd=directory
        ) as process,
    ):
        with watch(process.pid) as peak:
            while not _healthy(port):
                if process.poll() is not None or time.monotonic() > start + START_LIMIT:
                    raise SystemExit(f"The server did not start; it said:\n{log.read_text(errors='replace')[-3000:]}")
                time.sleep(POLL)
        yield Server(port, process.pid, Start(time.monotonic() - start, peak.anonymous, peak.resident))


@contextmanager
def json_lines(command: Sequence[str]) -> Iterator["JsonLines"]:
    """Runs a process that answers each line of JSON on its stdin with one on its stdout."""
    with _running(command, ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield JsonLines(process)


class JsonLines:
    """A JsonLines asks a process that answers each line of JSON with one."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    @property
    def process(self) -> int:
        return self._process.pid

    def ask(self, question: Any) -> Any:
        """Sends a question and returns the answer. Raises SystemExit if the process has ended."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # the process has ended, as receive() will say
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        return self.receive()

    def receive(self) -> Any:
        """Returns the next line's document. Raises SystemExit if the process has ended."""
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
                with suppress(BrokenPipeError):  # nobody read the last line
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


@dataclass(slots=True)
class PeakMemory:
    """A PeakMemory holds the most bytes that a process and its children were seen to hold."""

    anonymous: int = 0  # held by the processes for themselves: RssAnon
    resident: int = 0  # with the pages of mapped files: VmRSS

    @classmethod
    def now(cls, process: int) -> "PeakMemory":
        """Returns what the process and its children hold at this moment."""
        peak = cls()
        peak.update(process)
        return peak

    def update(self, process: int) -> None:
        """Looks at what the process and its children hold now."""
        sizes = [_sizes(one) for one in _family(process)]
        self.anonymous = max(self.anonymous, sum(anonymous for anonymous, _ in sizes))
        self.resident = max(self.resident, sum(resident for _, resident in sizes))


@contextmanager
def watch(process: int) -> Iterator[PeakMemory]:
    """Keeps the peak up to date, in a thread, until the context ends."""
    peak, ended = PeakMemory(), threading.Event()

    def look() -> None:
        while not ended.wait(INTERVAL):
            peak.update(process)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        ended.set()
        thread.join()


def anonymous_bytes() -> int:
    """Returns the bytes that this process holds for itself (RssAnon), without mapped files; 0 on other than Linux."""
    return _sizes(os.getpid())[0]


def _family(process: int) -> Iterator[int]:
    yield process
    for path in Path(f"/proc/{process}/task").glob("*/children"):
        for child in _text(path).split():
            yield from _family(int(child))


def _sizes(process: int) -> tuple[int, int]:
    """Returns RssAnon and VmRSS in bytes; zeros if the process has ended."""
    fields = dict(line.partition(":")[::2] for line in _text(Path(f"/proc/{process}/status")).splitlines())
    anonymous, resident = (int((fields.get(name) or "0 kB").split()[0]) * 1024 for name in ("RssAnon", "VmRSS"))
    return anonymous, resident


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:  # the process has ended meanwhile
        return ""
