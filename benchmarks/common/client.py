"""A streaming client that is as light as can be: it shares the machine with what it measures."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from benchmarks.common.figures import Round, Sample


class StreamError(Exception):
    """The stream is not what a successful request sends."""


@dataclass(frozen=True, slots=True)
class Target:
    host: str
    port: int
    model: str
    max_tokens: int


async def closed_loop(target: Target, prompts: Iterable[str], streams: int, tick: Callable[[], object]) -> Round:
    """Keeps `streams` requests open until the prompts are used up: each stream sends the next one when one ends."""
    waiting = iter(prompts)
    samples: list[Sample] = []

    async def stream() -> None:
        for prompt in waiting:
            samples.append(await chat(target, prompt))
            tick()

    start = perf_counter()
    await asyncio.gather(*(stream() for _ in range(streams)))
    return Round(tuple(samples), perf_counter() - start)


async def chat(target: Target, prompt: str) -> Sample:
    """Sends one greedy request and notes when each piece of text arrives."""
    asked = {"messages": [{"role": "user", "content": prompt}]}
    sample = await streamed(target, "chat/completions", asked, lambda choice: choice["delta"].get("content"))
    if sample.error is None and not (sample.arrivals and sample.tokens):
        return Sample(error="the stream held no text or no usage")
    return sample


async def streamed(target: Target, path: str, asked: dict[str, Any], text: Callable[[Any], object]) -> Sample:
    """One greedy request, of whichever endpoint; `text` finds the text in a choice of its stream."""
    start = perf_counter()
    arrivals: list[float] = []
    tokens = 0
    try:
        reader, writer = await asyncio.open_connection(target.host, target.port)
        try:
            writer.write(_request(target, path, asked))
            async for event in events(reader):
                if event["choices"] and text(event["choices"][0]):
                    arrivals.append(perf_counter() - start)
                tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
        finally:
            writer.close()
    except (OSError, StreamError, ValueError, LookupError) as error:
        return Sample(error=f"{type(error).__name__}: {error}")
    return Sample(tokens, tuple(arrivals))


async def events(reader: asyncio.StreamReader) -> AsyncIterator[dict[str, Any]]:
    """The JSON objects of a server-sent event stream, up to [DONE].

    Raises StreamError for another status than 200, an error object, or an end without [DONE].
    """
    status = await reader.readline()
    if not status:
        raise StreamError("the connection was closed without an answer")
    if status.split()[1:2] != [b"200"]:
        answer = (status + await reader.read())[:1000]
        raise StreamError(" ".join(answer.decode(errors="replace").split()))
    while (await reader.readline()).strip():
        pass  # the other headers
    while line := await reader.readline():
        if not line.startswith(b"data:"):
            continue  # an empty line between events, or a keep-alive comment
        data = line[5:].strip()
        if data == b"[DONE]":
            return
        event = json.loads(data)
        if "error" in event:
            raise StreamError(event["error"].get("message"))
        yield event
    raise StreamError("the stream ended without [DONE]")


def _request(target: Target, path: str, asked: dict[str, Any]) -> bytes:
    """In HTTP/1.0, whose answers come without chunked framing and end when the connection does."""
    common = {"model": target.model, "max_tokens": target.max_tokens, "temperature": 0}
    body = json.dumps(common | {"stream": True, "stream_options": {"include_usage": True}} | asked).encode()
    head = (
        f"POST /v1/{path} HTTP/1.0\r\nHost: {target.host}:{target.port}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
