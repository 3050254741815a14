"""A process reads large bodies as a thread reads small ones, and whatever it is doing ends with its client."""

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from octavo.server.config import ServerConfig
from octavo.server.generation import helper as helper_module
from octavo.server.generation.helper import Helper
from octavo.server.generation.intake import SMALL
from octavo.server.http.errors import ApiError, BodyTooLarge, InvalidRequest
from octavo.server.text.tokenizer import Tokenizer
from tests.e2e.harness import until, write_tokenizer
from tests.server.client import MODEL, Client
from tests.server.fake import READY, FakeEngineClient, replay
from tests.server.generation.failing import fails
from tests.server.vocab import ids_of

PADDING = {"metadata": {"note": "x" * SMALL}}  # makes a body a large one
SCHEMA = {"type": "object", "properties": {}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    write_tokenizer(directory)
    return directory


@pytest.fixture(scope="module")
def client(directory: Path) -> Iterator[Client]:
    script = replay(ids_of('<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'))
    engine = FakeEngineClient(script, state=replace(READY, max_model_len=4096))
    yield Client(engine, Tokenizer.from_directory(directory))


def test_each_endpoint_answers_large_bodies_as_small_ones(client: Client) -> None:
    said = [{"role": "user", "content": "hi"}]
    bodies: dict[str, dict[str, Any]] = {
        "/v1/completions": {"prompt": ["hi", "ho"], "echo": True},
        "/v1/chat/completions": {"messages": said, "tools": [TOOL]},
        "/v1/responses": {"input": "hi", "tools": [{"type": "function", "name": "f"}]},
        "/v1/messages": {
            "messages": said,
            "max_tokens": 99,
            "tools": [{"name": "f", "input_schema": {"type": "object"}}],
        },
        "/v1/messages/count_tokens": {"messages": said},
        "/tokenize": {"messages": said, "return_token_strs": True},
        "/detokenize": {"tokens": [70, 71]},
        "/apply-template": {"messages": said},
    }
    for path, body in bodies.items():
        client.engine.submitted.clear()
        small = client.post(path, {"model": MODEL} | body)
        padded = client.post(path, json.dumps({"model": MODEL} | body).encode() + b" " * SMALL)
        assert (small.status, padded.status) == (200, 200), (path, small.body, padded.body)
        assert _shape(small.json()) == _shape(padded.json()), path
        prompts = [request.prompt for request in client.engine.submitted]
        assert prompts[: len(prompts) // 2] == prompts[len(prompts) // 2 :]


def _shape(value: Any) -> Any:
    """Returns a value without what differs from answer to answer: ids and times."""
    if isinstance(value, dict):
        changing = ("id", "call_id", "created", "created_at", "completed_at")
        return {key: _shape(each) for key, each in value.items() if key not in changing}
    return [_shape(each) for each in value] if isinstance(value, list) else value


def test_errors_come_back_with_their_fields(client: Client) -> None:
    wrong = client.chat(**PADDING, temperature=9)
    assert (wrong.status, wrong.error["param"]) == (400, "temperature")
    renamed = client.respond(input="x" * SMALL)
    assert (renamed.status, renamed.error["param"]) == (400, "input")
    long = client.chat(messages=[{"role": "user", "content": "x" * SMALL}])
    assert (long.status, long.error["code"]) == (400, "context_length_exceeded")
    assert client.complete(**PADDING, model="other").status == 404


def test_how_reading_ends(directory: Path, tmp_path: Path) -> None:
    helper = Helper(directory, ServerConfig((MODEL,)))

    async def ask(how: str, body: bytes = b"") -> Any:
        return await helper.run(fails, body, (how,))

    async def run() -> None:
        first = await ask("work")
        with pytest.raises(InvalidRequest, match="'field' is wrong: so") as refused:
            await ask("refuse")
        assert refused.value.param == "field"
        with pytest.raises(RuntimeError, match="a secret detail"):
            await ask("crash")
        with pytest.raises(BodyTooLarge):
            await ask("fill")
        assert await ask("work") == first  # It has survived all of that.
        with pytest.raises(ApiError):
            await ask("die")
        second = await ask("work")
        assert second != first
        await leave(tmp_path / "begun")
        assert not Path(f"/proc/{second}").exists()
        third = int(await ask("work"))
        assert third != int(second)
        os.kill(third, signal.SIGKILL)  # while it is idle
        await asyncio.to_thread(os.waitid, os.P_PID, third, os.WEXITED | os.WNOWAIT)
        assert await ask("work") != str(third)

    async def leave(begun: Path) -> None:
        """Asks for what takes for ever, and leaves when it has begun."""
        task = asyncio.create_task(ask("hang", str(begun).encode()))
        await asyncio.to_thread(until, begun.exists, "the work has begun")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())


def test_a_process_that_stands_still_is_not_waited_for(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper = Helper(directory, ServerConfig((MODEL,)))

    async def run() -> None:
        first = await helper.run(fails, b"", ("work",))
        os.kill(int(first), signal.SIGSTOP)
        with pytest.raises(InvalidRequest, match="takes more than 1 seconds"):
            await helper.run(fails, b"x" * 2**20, ("work",))  # The pipe has no room for so much.
        assert await helper.run(fails, b"", ("work",)) != first

    with monkeypatch.context() as impatient:
        impatient.setattr(helper_module, "READ_SECONDS", 1.0)
        asyncio.run(run())
