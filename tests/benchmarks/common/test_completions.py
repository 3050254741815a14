"""Clients that come at once: what they send, and what counts as an answer."""

import asyncio
import json
from collections.abc import Callable

from benchmarks.common.completions import burst
from benchmarks.common.figures import Round
from tests.benchmarks.common.support import DONE, OK, serve, usage


def piece(text: str) -> str:
    return "data: " + json.dumps({"choices": [{"text": text}]}) + "\n\n"


def ask(reply: Callable[[bytes], str], prompts: list[list[int]]) -> Round:
    return asyncio.run(serve(reply, lambda target: burst(target, prompts), 2))


def test_every_prompt_is_sent_as_ids() -> None:
    bodies: list[dict] = []

    def reply(body: bytes) -> str:
        bodies.append(json.loads(body))
        return OK + piece("a") + piece("b") + usage(2) + DONE

    found = ask(reply, [[3, 4], [5, 6]])
    assert sorted(body["prompt"] for body in bodies) == [[3, 4], [5, 6]]
    assert all(body["ignore_eos"] and body["max_tokens"] == 2 for body in bodies)
    assert [(sample.tokens, len(sample.arrivals), sample.error) for sample in found.samples] == [(2, 2, None)] * 2


def test_an_answer_that_is_too_short_is_none() -> None:
    found = ask(lambda body: OK + piece("a") + usage(1) + DONE, [[3]])
    assert found.samples[0].error == "1 tokens came, 2 were asked for"
    assert found.good == ()


def test_a_refusal_is_a_failure() -> None:
    assert "503" in str(ask(lambda body: "HTTP/1.0 503 Busy\r\n\r\n", [[3]]).samples[0].error)
