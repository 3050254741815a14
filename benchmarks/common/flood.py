"""A flood of prompts that can only be refused comes to a server that is full, and takes something from the others."""

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter

from benchmarks.common.figures import milliseconds, table_head, table_line
from benchmarks.common.hostile import CHAT, Answer, chat, post
from benchmarks.common.prompts import prompt

SECONDS = 20.0  # of each measurement
TOKENS = 400  # of each answer that is served
CLIENTS = 32  # of the flood
PAUSE = 1.0  # seconds after which a refused client comes again: half of what Retry-After tells it
WORDS = 40_000  # of a prompt that is longer than the context


@dataclass(slots=True)
class Tide:
    """Holds what was served, and how what was refused ended."""

    rate: float = 0.0  # tokens a second
    refusals: list[Answer] = field(default_factory=list)


async def measure(port: int, places: int) -> Sequence[Tide]:
    """Keeps every place taken; returns what is served without the flood and with it."""
    return [await _measure(port, places, clients) for clients in (0, CLIENTS)]


async def _measure(port: int, places: int, clients: int) -> Tide:
    tide, arrivals = Tide(), [0]
    served = [asyncio.create_task(_served(port, number, arrivals)) for number in range(places)]
    await asyncio.sleep(3.0)
    flooding = [asyncio.create_task(_refused(port, tide)) for _ in range(clients)]
    await asyncio.sleep(1.0)
    begun, before = perf_counter(), arrivals[0]
    await asyncio.sleep(SECONDS)
    tide.rate = (arrivals[0] - before) / (perf_counter() - begun)
    for task in (*served, *flooding):
        task.cancel()
    await asyncio.gather(*served, *flooding, return_exceptions=True)
    await asyncio.sleep(2.0)
    return tide


async def _served(port: int, number: int, arrivals: list[int]) -> None:
    """Takes one place again and again, and counts tokens."""
    while True:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        body = chat(prompt(number), TOKENS)
        head = f"POST {CHAT} HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        try:
            while line := await reader.readline():
                arrivals[0] += line.startswith(b"data:")
        finally:
            writer.transport.abort()


async def _refused(port: int, tide: Tide) -> None:
    messages = [{"role": "user", "content": "word " * WORDS}]
    body = json.dumps({"model": "m", "messages": messages}).encode()
    while True:
        tide.refusals.append(await post(port, CHAT, body))
        await asyncio.sleep(PAUSE)


def table(tides: Sequence[Tide]) -> Sequence[str]:
    """Returns the lines of a table."""
    without, flooded = tides
    statuses = Counter(answer.status for answer in flooded.refusals)
    full = [answer.seconds for answer in flooded.refusals if answer.status == "429"]
    return (
        *table_head("the server is full", "tokens/s served", "429: median", "answers"),
        table_line("without a flood", f"{without.rate:.1f}", "-", "-"),
        table_line(
            f"{CLIENTS} more clients",
            f"{flooded.rate:.1f}",
            milliseconds(median(full) if full else None),
            ", ".join(f"{count} x {status}" for status, count in sorted(statuses.items())) or "-",
        ),
    )
