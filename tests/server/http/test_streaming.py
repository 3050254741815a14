"""Streams send headers at once and comments while nothing comes, and stop work when their client leaves."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest

from octavo.engine.api import FinishReason, Output, Request
from octavo.engine.client import Draining, QueueFull, TooLong, Unavailable, UnknownToken
from octavo.server.http.errors import InvalidRequest
from tests.server.client import Client, Exchange
from tests.server.fake import FakeEngineClient, outputs_of
from tests.server.openai.openai_spec import validate_stream
from tests.server.vocab import ids_of

STREAM = b'{"model": "org/tiny", "messages": [{"role": "user", "content": "hi"}], "stream": true}'
WHOLE = STREAM.replace(b"true", b"false")
JSON = {"content-type": "application/json"}
PATIENCE = 60  # seconds; the machine may be busy


def stalling(ids: Sequence[int]) -> Any:
    """Returns a script that replays the ids and then falls silent."""

    def script(request: Request) -> Iterable[Output | None]:
        return [*outputs_of(request, [*ids, 65])[:-1], None]

    return script


def failing(reason: FinishReason, error: str | None) -> Any:
    """Returns a script in which the engine ends after one token."""
    return lambda request: [*outputs_of(request, [*ids_of("a"), 65])[:1], Output(request.id, (), (), 0, reason, error)]


def waited_for(ids: Sequence[int], keep_alive: float = 10**6) -> Client:
    """Returns an app whose engine stalls. It sends no comments, so that it notices a lost client without writing."""
    return Client.replaying(stalling(ids), keep_alive=keep_alive)


async def exchange(client: Client, body: bytes, leaves: Callable[[list[bytes]], bool] | None) -> Exchange:
    """Sends a request and hangs up when `leaves` says so or, if it is None, once the engine has the request."""
    call = Exchange("POST", "/v1/chat/completions", body, JSON)
    if leaves is None:
        client.engine.when_submitted = call.left.set
    else:
        call.watch = lambda part: call.left.set() if leaves(call.reply.parts) else None
    async with asyncio.timeout(PATIENCE):
        await call.run(client.app)
    return call


@pytest.mark.parametrize("parts", [None, 1, 2, 3])
def test_a_client_that_leaves_a_stream(parts: int | None) -> None:
    client = waited_for(ids_of("ab"))
    leaves = None if parts is None else lambda sent: len(sent) >= parts
    call = asyncio.run(exchange(client, STREAM, leaves))
    assert call.reply.status == 200
    assert client.engine.generations[0].closed


def test_a_client_that_leaves_before_the_whole_answer(caplog: pytest.LogCaptureFixture) -> None:
    client = waited_for(ids_of("ab"))
    with caplog.at_level("INFO"):
        call = asyncio.run(exchange(client, WHOLE, None))
    assert call.reply.status == 0  # nobody was there to be answered
    assert client.engine.generations[0].closed
    assert " 499 " in caplog.text and "finish=abort" in caplog.text


def test_a_client_that_leaves_while_its_request_is_queued() -> None:
    client = waited_for([])
    for body in (STREAM, WHOLE):
        asyncio.run(exchange(client, body, None))
    assert all(generation.closed for generation in client.engine.generations)


def test_a_client_that_leaves_before_its_body_is_complete(caplog: pytest.LogCaptureFixture) -> None:
    client = Client()
    call = Exchange("POST", "/v1/completions", b"{", cut_short=True)
    call.left.set()
    with caplog.at_level("INFO"):
        asyncio.run(call.run(client.app))
    assert call.reply.status == 0 and client.engine.submitted == []
    assert " 499 " in caplog.text


def test_the_server_that_ends_closes_the_generation() -> None:
    client = waited_for(ids_of("a"))

    async def cancel() -> None:
        call, streaming = Exchange("POST", "/v1/chat/completions", STREAM, JSON), asyncio.Event()
        call.watch = lambda part: streaming.set()
        task = asyncio.ensure_future(call.run(client.app))
        await streaming.wait()
        task.cancel()
        await asyncio.wait((task,))

    asyncio.run(cancel())
    assert client.engine.generations[0].closed


def test_comments_keep_the_connection_alive() -> None:
    def was_silent(parts: list[bytes]) -> bool:
        """Returns whether three comments have followed the text."""
        return b'"content":"a"' in b"".join(parts) and parts[-3:] == [b": keep-alive\n\n"] * 3

    call = asyncio.run(exchange(waited_for(ids_of("a"), keep_alive=0.01), STREAM, was_silent))
    assert call.reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert call.reply.headers["cache-control"] == "no-cache"


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("refusal", "status", "code"),
    [
        (TooLong("too long for the pool"), 400, "context_length_exceeded"),
        (UnknownToken("no such token"), 400, InvalidRequest("").code),
        (QueueFull("16 requests wait already"), 429, "queue_full"),
        (Unavailable("the engine is away"), 503, "engine_unavailable"),
    ],
)
def test_what_the_engine_refuses_is_an_http_error(refusal: Any, status: int, code: str, stream: bool) -> None:
    client = Client(FakeEngineClient(refusal=refusal))
    for reply in (client.chat(stream=stream), client.complete(stream=stream)):
        assert (reply.status, reply.error["code"]) == (status, code)
        assert reply.error["message"] == str(refusal)
        assert ("retry-after" in reply.headers) == (status in (429, 503))


@pytest.mark.parametrize(("reason", "error"), [(FinishReason.ERROR, "out of memory"), (FinishReason.ABORT, None)])
def test_an_engine_that_fails_ends_the_stream_with_an_error(reason: FinishReason, error: str | None) -> None:
    client = Client.replaying(failing(reason, error))
    *chunks, last = client.chat(stream=True).events()
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == "a"
    assert (last["error"]["type"], last["error"]["code"]) == ("server_error", "internal_error")
    assert (error or "") in last["error"]["message"]
    assert client.engine.generations[0].closed


@pytest.mark.parametrize(("state", "status"), [(None, 500), (Draining(), 503)])
def test_an_engine_that_fails_before_the_answer_is_an_http_error(state: Any, status: int) -> None:
    client = Client.replaying(failing(FinishReason.ERROR, "out of memory"))
    submit = client.engine.submit

    def fail_after_submit(requests: Sequence[Request]) -> Any:
        client.engine.state = state or client.engine.state
        return submit(requests)

    client.engine.submit = fail_after_submit  # type: ignore[method-assign]
    reply = client.complete()
    assert reply.status == status and "out of memory" in reply.error["message"]


def test_outputs_that_end_without_a_reason_are_an_error() -> None:
    client = Client.replaying(lambda request: [])

    async def nothing() -> Any:
        for _ in ():
            yield

    submit = client.engine.submit

    def empty(requests: Sequence[Request]) -> Any:
        generation = submit(requests)
        generation._outputs = nothing  # type: ignore[method-assign]
        return generation

    client.engine.submit = empty  # type: ignore[method-assign]
    assert client.complete().status == 500
    assert "error" in client.complete(stream=True).events()[-1]


def test_line_separators_within_the_text_do_not_break_lines() -> None:
    client = Client.replaying(lambda request: outputs_of(request, ids_of("a\u2028b\u2029c\x85d\r\ne")))
    reply = client.complete(stream=True, max_tokens=100)
    validate_stream("/v1/completions", reply.lines)
    assert len(reply.body.decode().splitlines()) == reply.body.count(b"\n")
    assert "".join(event["choices"][0]["text"] for event in reply.events()) == "a\u2028b\u2029c\x85d\r\ne"
