"""A Client needs no sockets: it calls the ASGI application, and validates every response."""

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from octavo.server.app import create_app
from octavo.server.config import ServerConfig
from octavo.server.http import page
from octavo.server.text.tokenizer import Tokenizer
from tests.server.fake import FakeEngineClient, Script
from tests.server.openai.openai_spec import validate, validate_stream
from tests.server.strict import named_events
from tests.server.vocab import byte_level

MODEL = "org/tiny"
NO_JSON = ("/metrics", "/v1/experts.npz")
each_endpoint = pytest.mark.parametrize("endpoint", ["complete", "chat"])


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    parts: list[bytes]  # of the body, one for each ASGI message

    @property
    def body(self) -> bytes:
        return b"".join(self.parts)

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        error = self.json()["error"]
        assert isinstance(error, dict)
        return error

    @property
    def lines(self) -> list[str]:
        return self.body.decode().split("\n")

    def named_events(self) -> list[dict[str, Any]]:
        """Returns the events of a stream in which they carry their type as a name."""
        return named_events(self.lines)

    def events(self) -> list[Any]:
        """Returns the objects of a stream, without the last [DONE]."""
        data = [line.removeprefix("data: ") for line in self.lines if line.startswith("data: ")]
        assert data.count("[DONE]") == 1 and data[-1] == "[DONE]"
        return [json.loads(item) for item in data[:-1]]


@dataclass
class Client:
    """Holds one app over a fake engine, and calls it."""

    engine: FakeEngineClient = field(default_factory=FakeEngineClient)
    tokenizer: Tokenizer = field(default_factory=byte_level)
    config: ServerConfig = field(default_factory=lambda: ServerConfig(served_model_names=(MODEL,)))

    def __post_init__(self) -> None:
        self.app = create_app(self.engine, self.tokenizer, self.config)

    @classmethod
    def replaying(cls, script: Script, tokenizer: Tokenizer | None = None, **config: Any) -> "Client":
        return cls(FakeEngineClient(script), tokenizer or byte_level(), ServerConfig((MODEL,), **config))

    def get(self, path: str, **headers: str) -> Reply:
        return self.call("GET", path, b"", headers)

    def post(self, path: str, body: Mapping[str, Any] | bytes, **headers: str) -> Reply:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.call("POST", path, content, {"content_type": "application/json"} | headers)

    def complete(self, **parameters: Any) -> Reply:
        return self.post("/v1/completions", {"model": MODEL, "prompt": "hi"} | parameters)

    def chat(self, **parameters: Any) -> Reply:
        messages = [{"role": "user", "content": "hi"}]
        return self.post("/v1/chat/completions", {"model": MODEL, "messages": messages} | parameters)

    def respond(self, **parameters: Any) -> Reply:
        return self.post("/v1/responses", {"model": MODEL, "input": "hi"} | parameters)

    def message(self, **parameters: Any) -> Reply:
        messages = [{"role": "user", "content": "hi"}]
        return self.post("/v1/messages", {"model": MODEL, "max_tokens": 100, "messages": messages} | parameters)

    def generate(self, endpoint: str, **parameters: Any) -> Reply:
        """Calls one of the endpoints of `each_endpoint`."""
        return self.complete(**parameters) if endpoint == "complete" else self.chat(**parameters)

    def call(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> Reply:
        exchange = Exchange(method, path, body, headers)
        asyncio.run(exchange.run(self.app))
        _validate(method, path.removeprefix(self.config.root_path), exchange.reply)
        return exchange.reply


@dataclass
class Exchange:
    """Sends one request by hand. `watch` sees each part of the answer; the client hangs up when `left` is set."""

    method: str
    path: str
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    watch: Callable[[bytes], None] = field(default=lambda part: None)
    left: asyncio.Event = field(default_factory=asyncio.Event)
    cut_short: bool = False  # the body ends before it is complete

    def __post_init__(self) -> None:
        self.reply = Reply(0, {}, [])
        self._bodies = [self.body[i : i + 65536] for i in range(0, len(self.body), 65536)] or [b""]

    async def run(self, app: Callable[..., Any]) -> None:
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": self.method,
            "scheme": "http",
            "path": self.path,
            "raw_path": self.path.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": [(k.replace("_", "-").lower().encode(), v.encode("latin-1")) for k, v in self.headers.items()],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
        }
        await app(scope, self._receive, self._send)

    async def _receive(self) -> dict[str, Any]:
        if self._bodies:
            part = self._bodies.pop(0)
            return {"type": "http.request", "body": part, "more_body": bool(self._bodies) or self.cut_short}
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.reply = Reply(message["status"], {k.decode(): v.decode() for k, v in message["headers"]}, [])
        elif message["body"]:
            self.reply.parts.append(message["body"])
            self.watch(message["body"])
        await asyncio.sleep(0)


def _validate(method: str, path: str, reply: Reply) -> None:
    if reply.headers.get("content-type", "").startswith("text/event-stream"):
        validate_stream(path, reply.lines)
    elif reply.status >= 400 or (path not in NO_JSON and method != "OPTIONS" and not page.is_open(path)):
        validate(path, "GET" if method == "HEAD" else method, reply.status, reply.body)
