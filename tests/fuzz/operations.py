"""Lists the operations of both specifications, and has schemathesis make requests that fit each, and that do not."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import Case, GenerationMode

from tests.server.client import MODEL, Client
from tests.server.openai.openai_spec import components

OURS, OPENAI = "ours", "openai"
LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
PROMPTS = {"prompt": "hi", "messages": [{"role": "user", "content": "hi"}], "input": "hi", "tokens": [3, 4]}


@dataclass(frozen=True)
class Request:
    """A Request is what goes over the wire."""

    method: str
    path: str
    body: bytes
    content_type: str

    def streamed(self) -> "Request":
        body = json.loads(self.body) | {"stream": True}
        return replace(self, body=json.dumps(body).encode())


@dataclass(frozen=True)
class Operation:
    specification: str
    method: str
    path: str  # with its {parameters}, as the app knows it

    def __str__(self) -> str:
        return f"{self.specification} {self.method} {self.path}"

    @property
    def responses(self) -> dict[str, Any]:
        """Returns the responses that our own document lists, by status."""
        path = self.path.replace("{model}", "{name}")  # as OpenAI calls it
        found = document(OURS)["paths"][path][self.method.lower()]["responses"]
        assert isinstance(found, dict)
        return found

    @property
    def takes_something(self) -> bool:
        """Returns whether there is anything in a request that could not fit."""
        path = self.path.removeprefix(_prefix(self.specification))
        described = document(self.specification)["paths"][path][self.method.lower()]
        return bool(described.keys() & {"requestBody", "parameters"})

    @property
    def streams(self) -> bool:
        return "text/event-stream" in self.responses["200"]["content"]

    def requests(self, examples: int, most_tokens: int) -> tuple[Request, ...]:
        """Returns so many that fit the specification and, if there is a body, as many that do not; always the same."""
        return _requests(self, examples, most_tokens)

    def request_of(self, case: Case, most_tokens: int) -> Request:
        path = _prefix(self.specification) + unquote(case.formatted_path)
        content_type = case.media_type or "application/json"
        if isinstance(case.body, bytes) or case.media_type is None:
            return Request(self.method, path, case.body if isinstance(case.body, bytes) else b"", content_type)
        body = _plausible(case.body, most_tokens) if isinstance(case.body, dict) else case.body
        return Request(self.method, path, json.dumps(body).encode(), content_type)


@cache
def _requests(operation: Operation, examples: int, most_tokens: int) -> tuple[Request, ...]:
    prefix = _prefix(operation.specification)
    described = _schema(operation.specification)[operation.path.removeprefix(prefix)][operation.method]
    spoils = operation.method == "POST" and operation.takes_something
    modes = [GenerationMode.POSITIVE, *([GenerationMode.NEGATIVE] if spoils else [])]
    found: list[Request] = []
    for mode in modes:

        @settings(
            max_examples=examples,
            derandomize=True,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=described.as_strategy(generation_mode=mode))
        def collect(case: Case) -> None:
            found.append(operation.request_of(case, most_tokens))

        collect()
    return tuple(found)


def _plausible(body: dict[str, Any], most_tokens: int) -> dict[str, Any]:
    """Puts the right model name into a body and, every other time, a right prompt, so that the rest of it is read too.

    It also bounds the length of the answer.
    """
    changes: dict[str, Any] = {"model": MODEL} if isinstance(body.get("model"), str) else {}
    if len(json.dumps(body)) % 2:
        changes |= {name: prompt for name, prompt in PROMPTS.items() if name in body}
    limits = {name: wanted for name in LIMITS if type(wanted := body.get(name)) is int} or {"max_tokens": most_tokens}
    return body | changes | {name: min(wanted, most_tokens) for name, wanted in limits.items()}


def operations() -> Iterator[Operation]:
    """Yields the operations of our own document and, if OPENAI_SPEC names the file, those of OpenAI's."""
    for specification in (OURS, OPENAI) if "OPENAI_SPEC" in os.environ else (OURS,):
        for path, item in document(specification)["paths"].items():
            for method in item:
                yield Operation(specification, method.upper(), _prefix(specification) + path)


def _prefix(specification: str) -> str:
    return "/v1" if specification == OPENAI else ""


@cache
def document(specification: str) -> dict[str, Any]:
    if specification == OURS:
        ours = Client().get("/openapi.json").json()
        assert isinstance(ours, dict)
        return ours
    file = os.environ["OPENAI_SPEC"]
    paths = json.loads(Path(file).read_text("utf-8"))["paths"]
    for operation in (operation for item in paths.values() for operation in item.values()):
        operation["responses"] = {"200": {"description": "Judged by tests/server/openai/openai_spec.py."}}
    return {"openapi": "3.1.0", "info": {"title": "OpenAI", "version": "1"}, "paths": paths} | {
        "components": components(file)
    }


@cache
def _schema(specification: str) -> Any:
    return schemathesis.openapi.from_dict(document(specification))
