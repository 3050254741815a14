"""Is a client that sends nothing odd, and notes how long it has to wait while others do.

It runs in a process of its own: whoever sends and checks odd requests keeps an event loop waiting, too.
"""

import asyncio
import time
from dataclasses import dataclass

import httpx

PATIENCE = 60  # seconds within which each request must be answered
PAUSE = 0.1  # seconds between two requests


@dataclass
class Waits:
    """Waits are what the bystander saw."""

    gap: float = 0.0  # the longest time between two chunks of a stream, in seconds
    health: float = 0.0  # the slowest answer of /health, in seconds
    chunks: int = 0
    refused: int = 0  # answers other than 200


def watch(url: str, model: str, seconds: float) -> Waits:
    """Streams completions one after the other, and asks for /health meanwhile."""
    return asyncio.run(_watch(url, model, seconds))


async def _watch(url: str, model: str, seconds: float) -> Waits:
    waits = Waits()
    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE) as client:
        watchers = [asyncio.create_task(each) for each in (_stream(client, model, waits), _health(client, waits))]
        done, running = await asyncio.wait(watchers, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
        for watcher in running:
            watcher.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        for watcher in done:
            watcher.result()  # raises what has ended it
    return waits


async def _stream(client: httpx.AsyncClient, model: str, waits: Waits) -> None:
    body = {"model": model, "prompt": "Once", "max_tokens": 400, "stream": True, "ignore_eos": True}
    while True:
        async with client.stream("POST", "/v1/completions", json=body) as response:
            waits.refused += response.status_code != 200
            last = None
            async for _ in response.aiter_raw():
                now = time.monotonic()
                waits.gap = max(waits.gap, 0 if last is None else now - last)
                waits.chunks += 1
                last = now
        await asyncio.sleep(PAUSE)


async def _health(client: httpx.AsyncClient, waits: Waits) -> None:
    while True:
        begun = time.monotonic()
        response = await client.get("/health")
        waits.health = max(waits.health, time.monotonic() - begun)
        waits.refused += response.status_code != 200
        await asyncio.sleep(PAUSE)
