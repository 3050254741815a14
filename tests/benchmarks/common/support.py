"""Runs a server that sends what a test tells it, and holds a shape of a model that is made in no time."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

from benchmarks.common.client import Target

OK = "HTTP/1.0 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
DONE = "data: [DONE]\n\n"

SMALL_SHAPE = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


def usage(tokens: int) -> str:
    """Returns the last event of a stream, which counts its tokens."""
    return "data: " + json.dumps({"choices": [], "usage": {"completion_tokens": tokens}}) + "\n\n"


async def serve(reply: Callable[[bytes], str], work: Callable[[Target], Any], max_tokens: int) -> Any:
    """Runs `work` against a server whose answer to a request body is `reply(body)`."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split()[0])
        writer.write(reply(await reader.readexactly(length)).encode())
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        return await work(Target("127.0.0.1", server.sockets[0].getsockname()[1], "tiny", max_tokens))
