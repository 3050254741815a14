"""Clients that come all at once, with prompts of token ids: what every server is asked in the same words."""

import asyncio
import json
from dataclasses import dataclass
from time import perf_counter

from benchmarks.client import StreamError, events
from benchmarks.figures import Round, Sample


@dataclass(frozen=True, slots=True)
class Target:
    """Where to send, and what."""

    port: int
    model: str
    max_tokens: int


async def burst(target: Target, prompts: list[list[int]]) -> Round:
    """A client for each prompt; all send at the same moment."""
    start = perf_counter()
    samples = await asyncio.gather(*(complete(target, prompt) for prompt in prompts))
    return Round(tuple(samples), perf_counter() - start)


async def complete(target: Target, prompt: list[int]) -> Sample:
    """Sends one greedy request of a fixed length and notes when each piece of text arrives."""
    start = perf_counter()
    arrivals: list[float] = []
    tokens = 0
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", target.port)
        try:
            writer.write(_request(target, prompt))
            async for event in events(reader):
                if event["choices"] and event["choices"][0].get("text"):
                    arrivals.append(perf_counter() - start)
                tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
        finally:
            writer.close()
    except (OSError, StreamError, ValueError, LookupError) as error:
        return Sample(error=f"{type(error).__name__}: {error}")
    if not arrivals or tokens != target.max_tokens:
        return Sample(error=f"{tokens} tokens came, {target.max_tokens} were asked for")
    return Sample(tokens, tuple(arrivals))


def _request(target: Target, prompt: list[int]) -> bytes:
    """HTTP/1.0, as benchmarks.client has it."""
    body = json.dumps(
        {
            "model": target.model,
            "prompt": prompt,
            "max_tokens": target.max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ).encode()
    head = (
        f"POST /v1/completions HTTP/1.0\r\nHost: 127.0.0.1:{target.port}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
