"""Checks every answer under /v1/messages against the types of Anthropic's own package.

One correction is made: Anthropic documents the error request_too_large, for which the package has no type.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from anthropic.types import Message, MessageTokensCount, ModelInfo, RawMessageStreamEvent
from anthropic.types.shared import ErrorResponse

from tests.server.strict import check_types, named_events

OF_MODEL = {"type", "display_name", "created_at", "lifecycle"}  # keys that OpenAI's models do not have
OF_LIST = {"has_more", "first_id", "last_id"}


def validate_error(payload: Mapping[str, Any]) -> None:
    error = payload["error"]
    known = "invalid_request_error" if error["type"] == "request_too_large" else error["type"]
    check_types(ErrorResponse, {**payload, "error": {**error, "type": known}})
    assert payload.keys() == {"type", "error", "request_id"} and error.keys() == {"type", "message"}
    assert payload["request_id"]


def validate_models(payload: Mapping[str, Any]) -> None:
    """Checks one model or the list of them; both have OpenAI's fields, too."""
    models = payload.get("data", [payload])
    for model in models:
        assert model.keys() >= OF_MODEL
        check_types(ModelInfo, {key: value for key, value in model.items() if key in {"id", *OF_MODEL}})
    if "data" in payload:
        assert payload["has_more"] is False
        assert (payload["first_id"], payload["last_id"]) == (models[0]["id"], models[-1]["id"])


def validate_whole(path: str, payload: Mapping[str, Any]) -> None:
    check_types(MessageTokensCount if path.endswith("count_tokens") else Message, payload)


def validate_stream(lines: Sequence[str]) -> None:
    """Checks the order: message_start, blocks, message_delta, message_stop; or an error instead of the rest."""
    events = named_events(lines)
    for event in events:
        _check_event(event)
    assert [event["type"] == "message_start" for event in events] == [True] + [False] * (len(events) - 1)
    failed = events[-1]["type"] == "error"
    if not failed:
        assert [event["type"] for event in events[-2:]] == ["message_delta", "message_stop"]
    _check_blocks(events[1 : -1 if failed else -2], complete=not failed)


def _check_event(event: Mapping[str, Any]) -> None:
    if event["type"] == "error":
        validate_error(event)
    elif event["type"] == "ping":
        assert event.keys() == {"type"}
    else:
        check_types(RawMessageStreamEvent, event)


def _check_blocks(events: Sequence[Mapping[str, Any]], complete: bool) -> None:
    """Checks that each block is started, told in deltas of its kind and stopped before the next, and counted from 0."""
    kinds = {
        "text": {"text_delta"},
        "tool_use": {"input_json_delta"},
        "thinking": {"thinking_delta", "signature_delta"},
    }
    index, kind = -1, None
    for event in (event for event in events if event["type"] != "ping"):
        if event["type"] == "content_block_start":
            assert kind is None
            index, kind = index + 1, event["content_block"]["type"]
        assert event["index"] == index and kind is not None
        if event["type"] == "content_block_delta":
            assert event["delta"]["type"] in kinds[kind]
        if event["type"] == "content_block_stop":
            kind = None
    assert kind is None or not complete, "a block was left open"
