"""Sends requests of many clients at once, each in a thread, and tells how each of them ended."""

import json
import time
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import httpx

from tests.e2e.harness import MODEL, PATIENCE
from tests.server.openai.openai_spec import validate, validate_stream


@dataclass
class Ending:
    """An Ending is how one request ended, as its client saw it."""

    text: str
    status: int
    error: dict[str, Any] | None
    finish_reason: str | None
    complete: bool  # whether a stream's [DONE] came, or a whole body
    at: float  # time.monotonic()


def body_of(prompt: list[int], max_tokens: int, stream: bool) -> dict[str, Any]:
    return {"model": MODEL, "prompt": prompt, "max_tokens": max_tokens, "stream": stream}


def complete(url: str, prompt: list[int], max_tokens: int) -> Ending:
    """Sends a request without streaming, and waits for its end."""
    response = httpx.post(f"{url}/v1/completions", json=body_of(prompt, max_tokens, False), timeout=PATIENCE)
    validate("/v1/completions", "POST", response.status_code, response.content)
    answer = response.json()
    if response.status_code != 200:
        return Ending("", response.status_code, answer["error"], None, True, time.monotonic())
    choice = answer["choices"][0]
    return Ending(choice["text"], 200, None, choice["finish_reason"], True, time.monotonic())


def stream(url: str, prompt: list[int], max_tokens: int) -> Ending:
    """Sends a request whose answer is streamed, and reads it to its end."""
    ending = Ending("", 0, None, None, False, 0.0)
    request = body_of(prompt, max_tokens, True)
    with httpx.stream("POST", f"{url}/v1/completions", json=request, timeout=PATIENCE) as response:
        ending.status = response.status_code
        if ending.status != 200:
            validate("/v1/completions", "POST", ending.status, response.read())
            ending.error = response.json()["error"]
        else:
            lines = list(response.iter_lines())
            validate_stream("/v1/completions", lines)
            _read_events(lines, ending)
    ending.at = time.monotonic()
    return ending


def _read_events(lines: Iterable[str], ending: Ending) -> None:
    for line in lines:
        data = line.removeprefix("data: ")
        if data == line:
            continue  # It is a comment or a blank line.
        assert not ending.complete, "nothing follows [DONE]"
        if data == "[DONE]":
            ending.complete = True
        elif "error" in (event := json.loads(data)):
            ending.error = event["error"]
        else:
            (choice,) = event["choices"]
            ending.text += choice["text"]
            ending.finish_reason = choice["finish_reason"] or ending.finish_reason


class Crowd:
    """A Crowd is many clients that wait for their answers."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._pool = ThreadPoolExecutor(128)
        self._endings: list[Future[Ending]] = []

    def add(self, count: int, max_tokens: int, streaming: bool = True) -> None:
        ask = stream if streaming else complete
        self._endings += [self._pool.submit(ask, self._url, [3, index], max_tokens) for index in range(count)]

    def endings(self) -> list[Ending]:
        """Waits until all requests have ended."""
        wait(self._endings, PATIENCE)
        return [future.result(0) for future in self._endings]
