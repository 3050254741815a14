"""Tests which chat request a body of /v1/messages becomes."""

from typing import Any

import pytest

from octavo.server.anthropic.request import MessagesRequest

USER = {"role": "user", "content": "a"}
SCHEMA = {"type": "object", "properties": {"x": {"type": "integer"}}}


def chat(**fields: Any) -> dict[str, Any]:
    """Returns the chat request's fields that are not null."""
    body = {"model": "m", "max_tokens": 5, "messages": [USER]} | fields
    return {name: value for name, value in MessagesRequest.model_validate(body).chat().items() if value is not None}


def test_the_least() -> None:
    assert chat() == {"model": "m", "max_tokens": 5, "messages": [USER]}


def test_calls_and_their_results() -> None:
    use = {"type": "tool_use", "id": "1", "name": "f", "input": {"x": "é"}}
    results = [
        {"type": "tool_result", "tool_use_id": "1", "content": [{"type": "text", "text": "one"}]},
        {"type": "tool_result", "tool_use_id": "2", "content": "two", "is_error": True},
        {"type": "tool_result", "tool_use_id": "3"},
        {"type": "text", "text": "go on"},
    ]
    messages = [
        USER,
        {"role": "assistant", "content": [{"type": "text", "text": "b"}, use, use | {"id": "2"}]},
        {"role": "user", "content": results},
        {"role": "assistant", "content": [use | {"id": "3"}]},
        USER,
    ]
    function = {"name": "f", "arguments": '{"x": "é"}'}
    calls = [{"id": id, "type": "function", "function": function} for id in "123"]
    assert chat(messages=messages)["messages"] == [
        USER,
        {"role": "assistant", "content": "b", "tool_calls": calls[:2]},
        {"role": "tool", "tool_call_id": "1", "content": "one"},
        {"role": "tool", "tool_call_id": "2", "content": "two"},
        {"role": "tool", "tool_call_id": "3", "content": ""},
        {"role": "user", "content": "go on"},
        {"role": "assistant", "content": None, "tool_calls": calls[2:]},
        USER,
    ]


@pytest.mark.parametrize("input", [{}, {"input": None}, {"input": ""}, {"input": {}}])
def test_a_call_without_arguments(input: dict[str, Any]) -> None:
    content = [{"type": "tool_use", "id": "1", "name": "f"} | input]
    request = MessagesRequest.model_validate(
        {"model": "m", "max_tokens": 5, "messages": [USER, {"role": "assistant", "content": content}]}
    )
    request.check()
    assert request.chat()["messages"][1]["tool_calls"][0]["function"] == {"name": "f", "arguments": "{}"}


def test_tools() -> None:
    tool = {"name": "f", "description": "d", "input_schema": SCHEMA, "cache_control": {"type": "ephemeral"}}
    function = {"name": "f", "description": "d", "parameters": SCHEMA}
    assert chat(tools=[tool])["tools"] == [{"type": "function", "function": function}]


@pytest.mark.parametrize(
    ("choice", "translated"),
    [
        ({"type": "auto"}, "auto"),
        ({"type": "any"}, "required"),
        ({"type": "none"}, "none"),
        ({"type": "tool", "name": "f"}, {"type": "function", "function": {"name": "f"}}),
    ],
)
def test_tool_choices(choice: dict[str, Any], translated: Any) -> None:
    assert chat(tool_choice=choice)["tool_choice"] == translated
    assert "parallel_tool_calls" not in chat(tool_choice=choice)
    assert chat(tool_choice=choice | {"disable_parallel_tool_use": True})["parallel_tool_calls"] is False


def test_the_rest() -> None:
    config = {"format": {"type": "json_schema", "schema": SCHEMA}}
    translated = chat(
        system="s", stop_sequences=["x"], top_k=3, stream=True, metadata={"user_id": "u"}, output_config=config
    )
    assert translated["messages"][0] == {"role": "system", "content": "s"}
    assert (translated["stop"], translated["user"], translated["top_k"], translated["stream"]) == (["x"], "u", 3, True)
    assert translated["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True},
    }
    assert "stop" not in chat(stop_sequences=[])
