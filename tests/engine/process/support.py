"""Runs a ProcessClient over a fake engine, and waits for what it says."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

from octavo.engine.api import Output, Ready, Request, SamplingParams
from octavo.engine.client import (
    EngineState,
    Generation,
)
from octavo.engine.config import EngineConfig
from octavo.engine.process.client import ProcessClient
from octavo.engine.process.supervisor import Restarts
from tests.fake_engine import Behaviour, fake_build

PATIENCE = 60  # seconds; the machine may be busy
QUICK = Restarts(first_delay=0.01, longest_delay=0.02)
FOREVER = 10**9  # tokens


def request(name: str, *prompt: int, max_tokens: int = 3) -> Request:
    """Returns a request for the fake engine, which counts on from the prompt's last token."""
    return Request(name, prompt, SamplingParams(max_tokens=max_tokens))


@asynccontextmanager
async def running(
    behaviour: Behaviour, restarts: Restarts = QUICK, watch: Callable[[EngineState], None] | None = None
) -> AsyncIterator[ProcessClient]:
    """Runs a client over a fake engine; afterwards no process is left."""
    client = ProcessClient(EngineConfig(model=""), fake_build(behaviour), restarts, watch)
    client.start()
    try:
        yield client
    finally:
        await client.stop()
        assert client.engine_pid is None


async def until(condition: Callable[[], bool]) -> None:
    """Waits until the condition holds."""
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.005)


async def until_ready(client: ProcessClient) -> None:
    await until(lambda: isinstance(client.state, Ready))


async def outputs_of(generation: Generation) -> list[Output]:
    """Waits for the last output; returns all of them."""
    async with asyncio.timeout(PATIENCE):
        return [output async for output in generation]


def tokens_of(outputs: Iterable[Output]) -> list[int]:
    """Returns the tokens of the outputs, one behind the other."""
    return [token for output in outputs for token in output.token_ids]
