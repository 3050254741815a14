"""The client sends what it should, and notes what comes, from a server that sends what a test tells it."""

import asyncio
import json
from collections.abc import Callable

import pytest

from benchmarks.common.client import StreamError, burst, chat, closed_loop, events
from benchmarks.common.figures import Round
from tests.benchmarks.common.support import DONE, OK, serve, usage


def delta(content: str) -> str:
    return "data: " + json.dumps({"choices": [{"delta": {"content": content}}], "usage": None}) + "\n\n"


GOOD = OK + delta("") + ": keep-alive\n\n" + delta("Hel") + delta("lo") + usage(3) + DONE


def collected(text: str) -> list[dict]:
    async def collect() -> list[dict]:
        reader = asyncio.StreamReader()
        reader.feed_data(text.encode())
        reader.feed_eof()
        return [event async for event in events(reader)]

    return asyncio.run(collect())


def test_events_are_read_up_to_done() -> None:
    found = collected(GOOD + delta("after the end"))
    assert [event["choices"][0]["delta"]["content"] for event in found[:-1]] == ["", "Hel", "lo"]
    assert found[-1]["usage"] == {"completion_tokens": 3}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("HTTP/1.0 503 Service Unavailable\r\n\r\nloading", "503 Service Unavailable loading"),
        (OK + delta("x"), "without"),
        (OK + delta("x") + 'data: {"error": {"message": "the engine died"}}\n\n', "the engine died"),
        ("", "closed without an answer"),
    ],
)
def test_streams_that_fail(text: str, message: str) -> None:
    with pytest.raises(StreamError, match=message):
        collected(text)


def test_chat_notes_text_and_counts_tokens() -> None:
    bodies = []

    def reply(body: bytes) -> str:
        bodies.append(json.loads(body))
        return GOOD

    sample = asyncio.run(serve(reply, lambda target: chat(target, "Hi"), 3))
    assert sample.error is None
    assert sample.tokens == 3
    assert len(sample.arrivals) == 2  # the empty delta that names the role is not text
    assert bodies[0]["messages"] == [{"role": "user", "content": "Hi"}]
    assert bodies[0]["stream_options"] == {"include_usage": True}


def test_failures_are_samples() -> None:
    sample = asyncio.run(serve(lambda body: OK + DONE, lambda target: chat(target, "Hi"), 3))
    assert sample.error == "the stream held no text or no usage"
    sample = asyncio.run(serve(lambda body: "HTTP/1.0 500 Oops\r\n\r\n", lambda target: chat(target, "Hi"), 3))
    assert sample.error is not None
    assert "500 Oops" in sample.error


def test_closed_loop_sends_every_prompt_once() -> None:
    seen: list[str] = []

    def reply(body: bytes) -> str:
        seen.append(json.loads(body)["messages"][0]["content"])
        return GOOD

    ticks: list[None] = []
    prompts = [f"prompt {number}" for number in range(7)]
    loop = asyncio.run(serve(reply, lambda target: closed_loop(target, prompts, 3, lambda: ticks.append(None)), 3))
    assert sorted(seen) == prompts
    assert len(loop.samples) == len(ticks) == 7
    assert loop.rate > 0


def completion(text: str) -> str:
    return "data: " + json.dumps({"choices": [{"text": text}]}) + "\n\n"


def ask(reply: Callable[[bytes], str], prompts: list[list[int]]) -> Round:
    return asyncio.run(serve(reply, lambda target: burst(target, prompts), 2))


def test_every_prompt_is_sent_as_ids() -> None:
    bodies: list[dict] = []

    def reply(body: bytes) -> str:
        bodies.append(json.loads(body))
        return OK + completion("a") + completion("b") + usage(2) + DONE

    found = ask(reply, [[3, 4], [5, 6]])
    assert sorted(body["prompt"] for body in bodies) == [[3, 4], [5, 6]]
    assert all(body["ignore_eos"] and body["max_tokens"] == 2 for body in bodies)
    assert [(sample.tokens, len(sample.arrivals), sample.error) for sample in found.samples] == [(2, 2, None)] * 2


def test_an_answer_that_is_too_short_is_none() -> None:
    found = ask(lambda body: OK + completion("a") + usage(1) + DONE, [[3]])
    assert found.samples[0].error == "1 tokens came, 2 were asked for"
    assert found.good == ()


def test_a_refusal_is_a_failure() -> None:
    assert "503" in str(ask(lambda body: "HTTP/1.0 503 Busy\r\n\r\n", [[3]]).samples[0].error)
