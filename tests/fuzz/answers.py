"""Checks an answer against our own document, which must list its status, its content type and the form of its body."""

import json
from collections.abc import Sequence
from functools import cache
from typing import Any

from jsonschema import Draft202012Validator

from tests.fuzz.operations import OURS, Operation, document


def check_answer(operation: Operation, status: int, content_type: str, body: bytes) -> None:
    """Raises AssertionError or a validation error if the document does not describe the answer."""
    assert status < 500, f"{operation} answered {status}: {body[:1000]!r}"
    assert str(status) in operation.responses, f"{operation} may not answer {status}: {body[:1000]!r}"
    kind = content_type.partition(";")[0]
    content = operation.responses[str(status)]["content"]
    assert kind in content, f"{operation} may not answer {kind}"
    if kind == "application/json":
        _validator(json.dumps(content[kind]["schema"])).validate(json.loads(body))
    elif kind == "text/event-stream":
        for event in _events(body.decode().split("\n")):
            _validator(json.dumps(content[kind]["schema"]["x-event"])).validate(event)


def _events(lines: Sequence[str]) -> list[Any]:
    data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    return [json.loads(item) for item in data if item != "[DONE]"]


@cache
def _validator(schema: str) -> Draft202012Validator:
    return Draft202012Validator(json.loads(schema) | {"components": document(OURS)["components"]})
