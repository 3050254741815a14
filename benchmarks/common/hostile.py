"""Hostile loads: bodies of eight megabytes that cost a server more than they are worth, and what sends them."""

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

SIZE = 8 * 1024 * 1024 - 1024  # bytes; the server takes 8 MiB
CHAT, TOKENIZE = "/v1/chat/completions", "/tokenize"
ALTERNATING = (  # as in Mistral's templates: the roles take turns, and there is no system message
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}[{{ message['role'] }}] {{ message['content'] }}\n"
    "{% endfor %}"
)


@dataclass(frozen=True, slots=True)
class Load:
    """A Load is one body, sent by some clients at once; afterwards a small request is sent and timed."""

    name: str
    path: str
    body: Callable[[], bytes]
    clients: int = 1
    stay: float | None = None  # seconds after which the clients leave; None: they wait for their answers
    alternating: bool = False  # the server's template wants roles to take turns


@dataclass(frozen=True, slots=True)
class Answer:
    """An Answer is how one request ended."""

    status: str  # an HTTP status, or why there is none
    seconds: float


def _repeated(head: bytes, piece: bytes, tail: bytes) -> bytes:
    """Returns a body of SIZE bytes at most with as many pieces as fit, with commas between them."""
    count = (SIZE - len(head) - len(tail)) // (len(piece) + 1)
    return head + b",".join([piece] * count) + tail


def _text(word: str, path: str) -> bytes:
    """Returns a body whose prompt, or only message, is the repeated word."""
    text = word * ((SIZE - 200) // len(word))
    if path == TOKENIZE:
        return json.dumps({"prompt": text, "return_token_strs": True}).encode()
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": text}]}).encode()


def _messages() -> bytes:
    return _repeated(b'{"model":"m","messages":[', b'{"role":"user","content":"a"}', b"]}")


def _parts() -> bytes:
    head = b'{"model":"m","messages":[{"role":"user","content":['
    return _repeated(head, b'{"type":"text","text":"a"}', b"]}]}")


def _extras() -> bytes:
    names = (f'"x{number}":1' for number in range(SIZE // 14))
    return ('{"model":"m","messages":[{"role":"user","content":"hi"}],' + ",".join(names) + "}").encode()


LOADS = (
    Load("digits", TOKENIZE, lambda: _text("7", TOKENIZE)),
    Load("words", TOKENIZE, lambda: _text("word ", TOKENIZE)),
    Load("prompt", CHAT, lambda: _text("word ", CHAT)),
    Load("messages", CHAT, _messages),
    Load("alternating", CHAT, _messages, alternating=True),
    Load("parts", CHAT, _parts),
    Load("extras", CHAT, _extras),
    Load("six", CHAT, lambda: _text("7", CHAT), clients=6),
    Load("twenty-four", CHAT, lambda: _text("7", CHAT), clients=24),
    Load("left", CHAT, lambda: _text("word ", CHAT), clients=20, stay=1.0),
)


async def send(port: int, load: Load) -> tuple[list[Answer], float]:
    """Sends the load; returns its answers, and the seconds that a small request takes right after it."""
    body = await asyncio.to_thread(load.body)
    answers = await asyncio.gather(*(post(port, load.path, body, load.stay) for _ in range(load.clients)))
    small = json.dumps({"model": "m", "messages": [{"role": "user", "content": "Hello."}], "max_tokens": 1})
    return list(answers), (await post(port, CHAT, small.encode())).seconds


async def post(port: int, path: str, body: bytes, stay: float | None = None) -> Answer:
    """Sends one request and reads its answer; hangs up after `stay` seconds."""
    start = perf_counter()
    try:
        async with asyncio.timeout(stay):
            status = await _exchange(port, path, body)
    except TimeoutError:
        status = "left"
    except OSError as error:
        status = type(error).__name__
    return Answer(status, perf_counter() - start)


async def _exchange(port: int, path: str, body: bytes) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode())
        writer.write(body)
        status = (await reader.readline()).split()[1:2]
        while await reader.read(2**16):
            pass
        return status[0].decode() if status else "closed"
    finally:
        writer.transport.abort()


@contextmanager
def alternating_model(model: Path, scratch: Path) -> Iterator[Path]:
    """Makes a checkpoint of links to the model's files, with a template that wants roles to take turns."""
    directory = scratch / "alternating"
    directory.mkdir()
    for file in model.iterdir():
        if file.name != "chat_template.jinja":
            (directory / file.name).symlink_to(file.resolve())
    (directory / "chat_template.jinja").write_text(ALTERNATING, encoding="utf-8")
    yield directory


def chat(prompt: str, max_tokens: int, **more: Any) -> bytes:
    """Returns the body of a chat that takes all its tokens."""
    fields = {"model": "m", "messages": [{"role": "user", "content": prompt}], "max_tokens": max_tokens}
    return json.dumps(fields | {"ignore_eos": True, "stream": True} | more).encode()
