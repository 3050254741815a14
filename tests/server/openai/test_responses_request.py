"""Tests which chat request a body of /v1/responses becomes."""

from typing import Any

import pytest

from octavo.server.conversation.messages import Message, turns_of
from octavo.server.openai.responses_request import ResponsesRequest


def chat(**fields: Any) -> dict[str, Any]:
    """Returns the chat request's fields that are not null."""
    given = ResponsesRequest.model_validate({"model": "m", "input": "a"} | fields).chat()
    return {name: value for name, value in given.items() if value is not None}


def call(id: str) -> dict[str, Any]:
    return {"type": "function_call", "call_id": id, "name": "f", "arguments": "{}", "id": "fc_1", "status": "completed"}


def test_the_least() -> None:
    assert chat() == {"model": "m", "messages": [{"role": "user", "content": "a"}]}


def test_the_chats_own_words_are_understood_where_the_body_is_silent() -> None:
    form = {"type": "json_object"}
    assert chat(response_format=form)["response_format"] == form
    assert chat(response_format=form, text={"format": {"type": "text"}})["response_format"] == {"type": "text"}
    assert chat(messages=[])["messages"] != []


def test_calls_and_their_outputs() -> None:
    items = [
        {"role": "user", "content": "a"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "b"}]},
        *(call("1"), call("2")),
        {"type": "function_call_output", "call_id": "1", "output": "one"},
        {"type": "function_call_output", "call_id": "2", "output": [{"type": "input_text", "text": "two"}]},
        call("3"),
    ]
    function = {"name": "f", "arguments": "{}"}
    calls = [{"id": id, "type": "function", "function": function} for id in "123"]
    assert chat(input=items)["messages"] == [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "tool_calls": calls[:2]},
        {"role": "tool", "tool_call_id": "1", "content": "one"},
        {"role": "tool", "tool_call_id": "2", "content": "two"},
        {"role": "assistant", "content": None, "tool_calls": calls[2:]},
    ]


@pytest.mark.parametrize("arguments", [{}, {"arguments": None}, {"arguments": ""}])
def test_a_call_without_arguments_and_an_assistant_who_says_nothing(arguments: dict[str, Any]) -> None:
    items = [{"role": "assistant", "content": None}, {"type": "function_call", "call_id": "1", "name": "f"} | arguments]
    request = ResponsesRequest.model_validate({"model": "m", "input": items})
    request.check()
    message = Message.model_validate(request.chat()["messages"][0])
    message.check(0)
    (calling,) = turns_of([message])
    assert calling["content"] == "" and calling["tool_calls"][0]["function"] == {"name": "f", "arguments": {}}


def test_tools() -> None:
    schema = {"type": "object", "properties": {}}
    tool = {"type": "function", "name": "f", "parameters": schema, "strict": True, "description": None}
    translated = chat(tools=[tool], tool_choice={"type": "function", "name": "f"}, parallel_tool_calls=False)
    function = {"name": "f", "parameters": schema, "strict": True}
    assert translated["tools"] == [{"type": "function", "function": function}]
    assert translated["tool_choice"] == {"type": "function", "function": {"name": "f"}}
    assert translated["parallel_tool_calls"] is False
    allowed = {"mode": "required", "tools": [{"type": "function", "name": "f"}]}
    assert chat(tools=[tool], tool_choice={"type": "allowed_tools"} | allowed)["tool_choice"] == {
        "type": "allowed_tools",
        "allowed_tools": {"mode": "required", "tools": [{"type": "function", "function": {"name": "f"}}]},
    }
    assert chat(tool_choice="required")["tool_choice"] == "required"


@pytest.mark.parametrize(
    ("given", "translated"),
    [
        ({"type": "text"}, {"type": "text"}),
        ({"type": "json_object"}, {"type": "json_object"}),
        (
            {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True},
            {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}, "strict": True}},
        ),
    ],
)
def test_formats(given: dict[str, Any], translated: dict[str, Any]) -> None:
    assert chat(text={"format": given})["response_format"] == translated


def test_fields_of_the_chat_request_are_handed_on() -> None:
    translated = chat(top_k=3, max_output_tokens=5, reasoning={"effort": "low"}, text={"verbosity": "low"}, stream=True)
    wanted = {"top_k": 3, "max_completion_tokens": 5, "reasoning_effort": "low", "verbosity": "low", "stream": True}
    assert wanted.items() <= translated.items()
