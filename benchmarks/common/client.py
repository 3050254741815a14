"""Sends streaming requests to a server and notes when text arrives, with little work: it shares the machine."""

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
    """A Target is the server that is asked, and the length of its answers."""

    host: str
    port: int
    model: str
    max_tokens: int


async def closed_loop(target: Target, prompts: Iterable[str], streams: int, tick: Callable[[], object]) -> Round:
    """Keeps `streams` chats open until the prompts are used up: each stream sends the next one when one ends."""
    waiting = iter(prompts)
    samples: list[Sample] = []

    async def stream() -> None:
        for prompt in waiting:
            samples.append(await chat(target, prompt))
            tick()

    start = perf_counter()
    await asyncio.gather(*(stream() for _ in range(streams)))
    return Round(tuple(samples), perf_counter() - start)


async def burst(target: Target, prompts: list[list[int]]) -> Round:
    """Sends a completion for each prompt of token ids, all at the same moment."""
    start = perf_counter()
    samples = await asyncio.gather(*(complete(target, prompt) for prompt in prompts))
    return Round(tuple(samples), perf_counter() - start)


async def chat(target: Target, prompt: str) -> Sample:
    """Sends one greedy chat request, which may end early."""
    body = {"messages": [{"role": "user", "content": prompt}]}
    sample = await _ask(target, "chat/completions", body, lambda choice: choice["delta"].get("content"))
    if sample.error is None and not (sample.arrivals and sample.tokens):
        return Sample(error="the stream held no text or no usage")
    return sample


async def complete(target: Target, prompt: list[int]) -> Sample:
    """Sends one greedy completion, which takes all the tokens that it may."""
    body = {"prompt": prompt, "ignore_eos": True}
    sample = await _ask(target, "completions", body, lambda choice: choice.get("text"))
    if sample.error is None and not (sample.arrivals and sample.tokens == target.max_tokens):
        return Sample(error=f"{sample.tokens} tokens came, {target.max_tokens} were asked for")
    return sample


async def _ask(target: Target, path: str, body: dict[str, Any], text: Callable[[Any], object]) -> Sample:
    """Sends one request and notes when text arrives; `text` finds it in a choice of the stream."""
    start = perf_counter()
    arrivals: list[float] = []
    tokens = 0
    try:
        reader, writer = await asyncio.open_connection(target.host, target.port)
        try:
            writer.write(_request(target, path, body))
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
    """Yields the JSON objects of a server-sent event stream, up to [DONE].

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


def _request(target: Target, path: str, body: dict[str, Any]) -> bytes:
    """Writes a request of HTTP/1.0, whose answers have no chunked framing and end when the connection does."""
    common = {"model": target.model, "max_tokens": target.max_tokens, "temperature": 0}
    content = json.dumps(common | {"stream": True, "stream_options": {"include_usage": True}} | body).encode()
    head = (
        f"POST /v1/{path} HTTP/1.0\r\nHost: {target.host}:{target.port}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content
