"""Sends rough requests to a real server for minutes, while a bystander streams: python -m tests.fuzz.soak --minutes 30

It ends with status 1 if any answer was a 5xx or undocumented, if a request was not answered at all, if the bystander's
stream or /health paused for too long, if the processes grew, or if the server's log has a traceback.
"""

import argparse
import asyncio
import itertools
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from random import Random

import httpx

from tests.e2e.harness import Server, children_of, started, write_tokenizer
from tests.fuzz.answers import check_answer
from tests.fuzz.bystander import PATIENCE, Waits, watch
from tests.fuzz.memory import resident_bytes
from tests.fuzz.operations import OURS, document
from tests.fuzz.rough import TEMPLATES, Rough, rough
from tests.server.client import MODEL
from tests.tiny import write_tiny_checkpoint

LONGEST_GAP = 1.0  # seconds without a chunk for the bystander, or without an answer of /health
KEPT_BYTES = 256 * 2**20  # by which the processes may grow once they have warmed up
WARM_UP = 0.25  # share of the time, after which memory is looked at first
LEFT_EARLY = 0.1  # share of requests whose client leaves before it has read the answer
MOST_TOKENS = 16
MAX_MODEL_LEN = 4096
FLAGS = ("--served-model-name", MODEL, "--kv-cache-memory", "64MiB", "--max-model-len", str(MAX_MODEL_LEN))


@dataclass
class Findings:
    """Findings are what one server did."""

    answers: Counter[int] = field(default_factory=Counter)  # by status; 499: the client left
    faults: list[str] = field(default_factory=list)
    waits: Waits = field(default_factory=Waits)
    warm: int = 0  # bytes
    end: int = 0  # bytes

    def judged(self) -> list[str]:
        """Returns the faults, with those of the whole."""
        found, waits = list(self.faults), self.waits
        found += [f"the bystander waited {waits.gap:.2f} s for a chunk"] if waits.gap > LONGEST_GAP else []
        found += [f"/health took {waits.health:.2f} s"] if waits.health > LONGEST_GAP else []
        found += [f"the bystander was refused {waits.refused} times"] if waits.refused else []
        grown = self.end - self.warm > KEPT_BYTES
        return found + ([f"memory grew from {self.warm:,} to {self.end:,} bytes"] if grown else [])

    def line(self) -> str:
        answers = ", ".join(f"{count} x {status}" for status, count in sorted(self.answers.items()))
        waits = f"longest gap {self.waits.gap:.2f} s over {self.waits.chunks} chunks, /health {self.waits.health:.2f} s"
        return f"{answers}; {waits}; {(self.end - self.warm) / 2**20:+.0f} MiB"


async def soak(server: Server, numbers: Iterator[int], seconds: float, clients: int) -> Findings:
    """Sends the requests of these numbers, so many at once, until the time is over."""
    found, end = Findings(), time.monotonic() + seconds
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        bystander = asyncio.get_running_loop().run_in_executor(pool, watch, server.url, MODEL, seconds)
        async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE) as client:
            senders = [_send_all(client, numbers, end, found) for _ in range(clients)]
            await asyncio.gather(_weigh(server, seconds * WARM_UP, found), *senders)
        found.waits = await bystander
    await asyncio.to_thread(server.wait_for_load, 0)
    found.end = _memory(server)
    if "Traceback" in server.output:
        found.faults.append("the log has a traceback")
    return found


async def _send_all(client: httpx.AsyncClient, numbers: Iterator[int], end: float, found: Findings) -> None:
    while time.monotonic() < end:
        await _send(client, rough(next(numbers), MODEL, MOST_TOKENS), found)


async def _send(client: httpx.AsyncClient, request: Rough, found: Findings) -> None:
    patience = Random(-request.number)
    leaves = patience.uniform(0, 0.3) if patience.random() < LEFT_EARLY else None
    try:
        async with asyncio.timeout(leaves):
            response = await client.post(request.path, content=request.body, headers=dict(request.headers))
        found.answers[response.status_code] += 1
        check_answer(request.operation, response.status_code, response.headers["content-type"], response.content)
    except TimeoutError:
        found.answers[499] += 1
    except Exception as error:
        found.faults.append(f"request {request.number}, {request.path}: {type(error).__name__} {str(error)[:300]}")


async def _weigh(server: Server, delay: float, found: Findings) -> None:
    await asyncio.sleep(delay)
    found.warm = _memory(server)


def _memory(server: Server) -> int:
    """Returns the bytes that the server's processes hold."""
    return sum(resident_bytes(pid) for pid in (server.process.pid, *children_of(server.process.pid)))


@contextmanager
def serving(model: Path | None, template: str, logs: Path) -> Iterator[Server]:
    """Serves a model, or a tiny one, with the chat template of this name. Leaves its log in `logs`."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name) / "model"
        _write_model(directory) if model is None else _link(model, directory)
        path = directory / "chat_template.jinja"
        path.unlink(missing_ok=True)
        path.write_text(TEMPLATES[template], encoding="utf-8")
        with started(["-m", "octavo", "serve", directory, *FLAGS], Path(name)) as server:
            server.wait_for_health(200)
            try:
                yield server
            finally:
                with suppress(OSError):
                    shutil.copy(server.log, logs / f"{template}.log")


def _write_model(directory: Path) -> None:
    write_tiny_checkpoint(directory, vocab_size=264, max_position_embeddings=MAX_MODEL_LEN)
    write_tokenizer(directory)


def _link(model: Path, directory: Path) -> None:
    directory.mkdir()
    for file in model.iterdir():
        (directory / file.name).symlink_to(file.resolve())


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=4.0, help="in all, shared out to the four chat templates")
    parser.add_argument("--model", type=Path, help="a checkpoint; the default is a tiny one, whose tokens are bytes")
    parser.add_argument("--seed", type=int, default=1, help="begins the numbers of the requests")
    parser.add_argument("--clients", type=int, default=4, help="requests at once")
    given = parser.parse_args()
    document(OURS)  # is made now, because it needs an event loop of its own
    logs = Path(tempfile.mkdtemp(prefix="soak-"))
    print(f"The servers' logs go to {logs}.", flush=True)
    numbers, broken = itertools.count(given.seed * 10**7), False
    for template in TEMPLATES:
        with serving(given.model, template, logs) as server:
            found = asyncio.run(soak(server, numbers, 60 * given.minutes / len(TEMPLATES), given.clients))
        faults = found.judged()
        broken |= bool(faults)
        print(f"{template}: {found.line()}; {len(faults)} faults", flush=True)
        for fault in faults[:50]:
            print(f"  {fault}", flush=True)
    return int(broken)


if __name__ == "__main__":
    sys.exit(main())
