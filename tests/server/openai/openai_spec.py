"""Checks every response against OpenAI's own types and, if OPENAI_SPEC names the file, OpenAI's specification.

These corrections are made to both, and no others:
1. `nullable: true` is read as OpenAPI 3.0 means it; the file says 3.1, whose validators ignore the word.
2. A completion's chunk may have `finish_reason: null`, as OpenAI itself sends.
3. 400, 401, 404, 405, 413, 429, 500 and 503 answer with ErrorResponse; the file names no failures.
4. The first token of an echoed prompt has no log-probability: null.
5. A completion's chunk may have `usage: null`, as the description of include_usage says.
The extensions `prompt_logprobs` and usage in every chunk are allowed where they were asked for, and `cut_short` where a
grammar cut an answer. So is `reasoning_content` in messages and deltas. `routed_experts` with its weights is allowed in
choices, as is `sglext`, which has a chunk of its own after those of the choices, as in SGLang.
"""

import copy
import json
import os
from collections.abc import Mapping, Sequence, Set
from functools import cache
from pathlib import Path
from typing import Any

import pydantic
from jsonschema import Draft202012Validator
from openai.types import Completion, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.shared import ErrorObject

from tests.server.anthropic import anthropic_spec
from tests.server.openai import responses_spec
from tests.server.strict import check_types, refuse_constant, take_routed

FAILURES = (400, 401, 404, 405, 408, 413, 415, 429, 431, 500, 503)
# These are not OpenAI's, but their failures have OpenAI's form.
OUR_OWN = ("/openapi.json", "/health", "/version", "/apply-template", "/tokenize", "/detokenize") + (
    "/v1/experts",
    "/v1/experts/reset",
)


class _ModelList(pydantic.BaseModel):
    """Stands for the list of models, for which the package has no type of its own."""

    object: str
    data: list[Model]


class _Error(pydantic.BaseModel):
    error: ErrorObject


WHOLE: dict[tuple[str, str], tuple[type[pydantic.BaseModel], str]] = {
    ("POST", "/v1/completions"): (Completion, "CreateCompletionResponse"),
    ("POST", "/v1/chat/completions"): (ChatCompletion, "CreateChatCompletionResponse"),
}
CHUNKS: dict[str, tuple[type[pydantic.BaseModel], str]] = {
    "/v1/completions": (Completion, "CompletionChunk"),
    "/v1/chat/completions": (ChatCompletionChunk, "CreateChatCompletionStreamResponse"),
}


def validate(path: str, method: str, status: int, body: bytes) -> None:
    """Checks a response that is not a stream. Raises AssertionError or a validation error."""
    payload = json.loads(body, parse_constant=refuse_constant)
    if status != 200:
        assert status in FAILURES, f"{method} {path} answered {status}"
        (anthropic_spec.validate_error if path.startswith("/v1/messages") else validate_error)(payload)
    elif path.startswith("/v1/messages"):
        anthropic_spec.validate_whole(path, payload)
    elif path == "/v1/responses":
        responses_spec.validate_whole(payload)
    elif path.startswith("/v1/models"):
        _validate_models(payload)
    elif path not in OUR_OWN:
        _check(*WHOLE[method, path], _corrected(payload))


def _validate_models(payload: Mapping[str, Any]) -> None:
    """Checks one model or the list of them, which have the fields of both APIs, against either."""
    anthropic_spec.validate_models(payload)
    if "data" in payload:
        models = [_without(anthropic_spec.OF_MODEL, model) for model in payload["data"]]
        _check(_ModelList, "ListModelsResponse", _without(anthropic_spec.OF_LIST, {**payload, "data": models}))
    else:
        _check(Model, "Model", _without(anthropic_spec.OF_MODEL, payload))


def _without(keys: Set[str], payload: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in payload.items() if key not in keys}


def validate_error(payload: Mapping[str, Any]) -> None:
    _check(_Error, "ErrorResponse", payload)
    assert payload.keys() == {"error"} and payload["error"].keys() == {"message", "type", "param", "code"}


def validate_stream(path: str, lines: Sequence[str]) -> None:
    """Checks a whole stream, given as lines without their ends: its framing, each chunk, and all chunks together."""
    if path == "/v1/responses":
        responses_spec.validate_stream(lines)
    elif path == "/v1/messages":
        anthropic_spec.validate_stream(lines)
    else:
        _validate_chunks(path, lines)


def _validate_chunks(path: str, lines: Sequence[str]) -> None:
    payloads = _unframed(lines)
    chunks = [payload for payload in payloads if "error" not in payload]
    for payload in payloads[len(chunks) :]:
        validate_error(payload)
    assert len(payloads) - len(chunks) <= 1 and payloads[: len(chunks)] == chunks, "an error comes last, and once"
    for chunk in chunks:
        _check_chunk(path, chunk)
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks}) <= 1
    _check_usage(chunks)
    _check_choices(path, chunks, complete=len(chunks) == len(payloads))


def _unframed(lines: Sequence[str]) -> list[dict[str, Any]]:
    """Checks that data lines and empty lines alternate, with comments between them, and that [DONE] is the last."""
    assert all(line == "" or line.startswith((": ", "data: ")) for line in lines), lines
    for line, following in zip(lines, lines[1:], strict=False):
        assert line == "" or following == "", "an event is one line and an empty one"
    data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    assert data.count("[DONE]") == 1 and data[-1] == "[DONE]"
    assert not any(set("\x85\u2028\u2029") & set(item) for item in data), "clients would split the line there"
    return [json.loads(item, parse_constant=refuse_constant) for item in data[:-1]]


def _corrected(payload: dict[str, Any]) -> dict[str, Any]:
    """Applies correction 4, and leaves out the extensions."""
    payload = copy.deepcopy(payload)
    if (extension := payload.pop("sglext", None)) is not None:
        assert extension.keys() == {"routed_experts"}
    for holder in (payload, *payload.get("choices", ())):
        _check_prompt_logprobs(holder.pop("prompt_logprobs", [None]))
        assert holder.pop("cut_short", None) is None or holder["finish_reason"] == "length"
        take_routed(holder)
        for said in (holder.get("message", {}), holder.get("delta", {})):
            assert isinstance(said.pop("reasoning_content", ""), str)
        logprobs = holder.get("logprobs") or {}
        if logprobs.get("token_logprobs", [0])[:1] == [None]:
            assert logprobs["text_offset"][0] == 0 and logprobs["top_logprobs"][0] is None
            logprobs["token_logprobs"][0], logprobs["top_logprobs"][0] = 0.0, {}
    return payload


def _check_prompt_logprobs(entries: list[Any]) -> None:
    assert entries[0] is None
    for entry in entries[1:]:
        assert all(id.isdecimal() for id in entry)
        for scored in entry.values():
            assert {key: type(value) for key, value in scored.items()} == {
                "logprob": float,
                "rank": int,
                "decoded_token": str,
            }


def _check_chunk(path: str, chunk: dict[str, Any]) -> None:
    chunk = _corrected(chunk)
    model, schema = CHUNKS[path]
    if model is Completion and chunk.get("usage", 0) is None:  # correction 5
        del chunk["usage"]
    _check_schema(schema, chunk)
    if model is Completion:  # correction 2
        choices = [choice | {"finish_reason": choice["finish_reason"] or "stop"} for choice in chunk["choices"]]
        chunk = chunk | {"choices": choices}
    check_types(model, chunk)


def _check_usage(chunks: Sequence[Mapping[str, Any]]) -> None:
    """Checks that only the usage chunk, the last one, has no choices; all others then say `usage: null`.

    So has that of `sglext`, just before. Usage in every chunk only grows.
    """
    ours = [chunk for chunk in chunks if "sglext" in chunk]
    assert all(chunk["choices"] == [] for chunk in ours) and len(ours) <= 1
    assert not ours or chunks[-1] in ours or chunks[-2] in ours
    chunks = [chunk for chunk in chunks if chunk not in ours]
    counted = [chunk["usage"]["total_tokens"] for chunk in chunks if chunk.get("usage") is not None]
    assert len(counted) in (0, 1, len(chunks)) and counted == sorted(counted)
    assert all(chunk["choices"] for chunk in chunks[:-1])
    if len(counted) == 1 < len(chunks):
        assert chunks[-1].get("usage") is not None and chunks[-1]["choices"] == []
    if any("usage" in chunk for chunk in chunks):
        assert all("usage" in chunk for chunk in chunks)
    elif chunks:
        assert chunks[-1]["choices"]


def _check_choices(path: str, chunks: Sequence[Mapping[str, Any]], complete: bool) -> None:
    """Checks that each choice has its role first and once, and its finish reason last and in a chunk of its own."""
    parts: dict[int, list[Mapping[str, Any]]] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            parts.setdefault(choice["index"], []).append(choice)
    for choices in parts.values():
        assert all(choice["finish_reason"] is None for choice in choices[:-1])
        assert not complete or choices[-1]["finish_reason"] is not None
        if choices[-1]["finish_reason"] is not None:
            assert choices[-1]["logprobs"] is None and not choices[-1].get("text") and not choices[-1].get("delta")
        if path == "/v1/chat/completions":
            assert choices[0]["delta"] == {"role": "assistant", "content": ""}
            assert all("role" not in choice["delta"] for choice in choices[1:])


def _check(model: type[pydantic.BaseModel], schema: str, payload: Mapping[str, Any]) -> None:
    check_types(model, payload)
    _check_schema(schema, payload)


def _check_schema(name: str, payload: Mapping[str, Any]) -> None:
    if (path := os.environ.get("OPENAI_SPEC")) is not None:
        _validator(path, name).validate(payload)


@cache
def _validator(path: str, name: str) -> Draft202012Validator:
    return Draft202012Validator({"$ref": f"#/components/schemas/{name}", "components": components(path)})


@cache
def components(path: str) -> dict[str, Any]:
    found = json.loads(Path(path).read_text("utf-8"))["components"]
    schemas = found["schemas"]
    chunk = copy.deepcopy(schemas["CreateCompletionResponse"])
    chunk["properties"]["choices"]["items"]["properties"]["finish_reason"]["nullable"] = True  # correction 2
    schemas["CompletionChunk"] = chunk
    corrected = _with_nulls(found)
    assert isinstance(corrected, dict)
    return corrected


def _with_nulls(node: Any) -> Any:
    """Applies correction 1: whatever is nullable is itself or null."""
    if isinstance(node, list):
        return [_with_nulls(item) for item in node]
    if not isinstance(node, dict):
        return node
    inner = {key: _with_nulls(value) for key, value in node.items() if key != "nullable"}
    return {"anyOf": [inner, {"type": "null"}]} if node.get("nullable") is True else inner
