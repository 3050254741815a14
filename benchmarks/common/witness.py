"""A witness streams an answer and asks for /health, in a process of its own, and notes how long it had to wait."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from time import perf_counter
from typing import Any

from benchmarks.common.hostile import CHAT, chat
from benchmarks.common.prompts import prompt

PAUSE = 0.05  # seconds between two questions for /health
TOKENS = 4000  # of each answer; the next stream begins when one has ended


@dataclass(slots=True)
class Seen:
    """Holds the longest times in seconds, and the number of tokens that came."""

    gap: float = 0.0  # between two tokens of a stream
    health: float = 0.0  # for an answer of /health
    tokens: int = 0
    failures: list[str] = field(default_factory=list)


@contextmanager
def witness(port: int) -> Iterator["Witness"]:
    """Runs a witness. It is told when a load begins and when it has ended."""
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_main, args=(port, theirs), daemon=True)
    process.start()
    theirs.close()
    ours.recv()  # the stream has begun
    try:
        yield Witness(ours)
    finally:
        process.kill()
        process.join()


class Witness:
    """A Witness is the process as its parent sees it."""

    def __init__(self, connection: "Connection[Any, Any]") -> None:
        self._connection = connection

    def testify(self) -> Seen:
        """Returns what was noted since the last call."""
        self._connection.send(None)
        testimony = self._connection.recv()
        assert isinstance(testimony, Seen)
        return testimony


def _main(port: int, connection: "Connection[Any, Any]") -> None:
    asyncio.run(_watch(port, connection))


async def _watch(port: int, connection: "Connection[Any, Any]") -> None:
    noted = Seen()
    begun = asyncio.Event()
    tasks = [asyncio.create_task(_stream(port, noted, begun)), asyncio.create_task(_health(port, noted))]
    await begun.wait()
    connection.send(None)
    loop = asyncio.get_running_loop()
    while True:
        await loop.run_in_executor(None, connection.recv)
        connection.send(noted)
        noted.gap = noted.health = 0.0
        noted.tokens, noted.failures = 0, []
        for task in tasks:
            if task.done():
                task.result()


async def _stream(port: int, noted: Seen, begun: asyncio.Event) -> None:
    number = 0
    while True:
        try:
            await _one_stream(port, noted, begun, number)
        except OSError as error:
            noted.failures.append(type(error).__name__)
            await asyncio.sleep(1)
        number += 1


async def _one_stream(port: int, noted: Seen, begun: asyncio.Event, number: int) -> None:
    reader, writer = await _ask(port, "POST", CHAT, chat(prompt(number), TOKENS))
    last = None
    while line := await reader.readline():
        if line.startswith(b"data:"):
            now = perf_counter()
            noted.gap = max(noted.gap, 0.0 if last is None else now - last)
            noted.tokens += 1
            last = now
            begun.set()
    writer.close()


async def _health(port: int, noted: Seen) -> None:
    while True:
        start = perf_counter()
        try:
            reader, writer = await _ask(port, "GET", "/health", b"")
            status = await reader.readline()
            writer.close()
            if b"200" not in status:
                noted.failures.append("health")
        except OSError as error:
            noted.failures.append(type(error).__name__)
        noted.health = max(noted.health, perf_counter() - start)
        await asyncio.sleep(PAUSE)


async def _ask(port: int, method: str, path: str, body: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return reader, writer
