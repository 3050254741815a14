"""Tests what the messages of each role need and may have, and the prompt that each becomes."""

from typing import Any

import pytest

from octavo.server.conversation.messages import Message, turns_of
from tests.server.client import Client
from tests.server.vocab import byte_level

USER = {"role": "user", "content": "a"}
CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "7", "tool_call_id": "call_1"}
ARGUMENTS = "tool_calls.0.function.arguments"
NAMING = "{% for m in messages %}<{{ m.role }}{% if m.name %} {{ m.name }}{% endif %}>{{ m.content }}{% endfor %}"


def prompt(messages: list[Any], template: str | None = None) -> str:
    client = Client(tokenizer=byte_level() if template is None else byte_level(template))
    reply = client.chat(messages=messages)
    assert reply.status == 200, reply.error
    return client.tokenizer.backend.decode(list(client.engine.submitted[0].prompt), skip_special_tokens=False)


def text(kind: str, value: str) -> dict[str, str]:
    return {"type": kind, kind: value}


@pytest.mark.parametrize(
    ("message", "rendered"),
    [
        ({"role": "system", "content": "a"}, "<system>a</s>"),
        ({"role": "developer", "content": "a"}, "<system>a</s>"),
        ({"role": "user", "content": [text("text", "a"), text("text", "b")]}, "<user>ab</s>"),
        ({"role": "assistant", "content": "a", "refusal": None, "audio": None}, "<assistant>a</s>"),
        ({"role": "assistant", "content": [text("text", "a"), text("refusal", "no")]}, "<assistant>ano</s>"),
        ({"role": "assistant", "content": None, "refusal": "no"}, "<assistant>no</s>"),
        ({"role": "assistant", "content": "a", "refusal": "no"}, "<assistant>a</s>"),
        ({"role": "assistant", "content": None}, "<assistant></s>"),
        ({"role": "assistant", "content": None, "tool_calls": []}, "<assistant></s>"),
        ({"role": "assistant"}, "<assistant></s>"),
        ({"role": "user", "content": "a", "name": None, "tool_calls": None, "tool_call_id": None}, "<user>a</s>"),
        (RESULT, "<user><tool_response>\n7\n</tool_response></s>"),
        (RESULT | {"content": [text("text", "7")]}, "<user><tool_response>\n7\n</tool_response></s>"),
    ],
)
def test_every_role(message: dict[str, Any], rendered: str) -> None:
    assert prompt([message]) == rendered + "<assistant>"


def test_names_reach_a_template_that_shows_them() -> None:
    assert prompt([USER | {"name": "Ada"}], NAMING) == "<user Ada>a"
    assert prompt([USER | {"name": ""}], NAMING) == prompt([USER], NAMING) == "<user>a"


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "function", "name": "f", "content": "7"}, "role"),
        ({"role": "tool", "content": "7"}, "tool_call_id"),
        ({"role": "tool", "content": "7", "tool_call_id": None}, "tool_call_id"),
        ({"role": "tool", "tool_call_id": "1"}, "content"),
        ({"role": "tool", "tool_call_id": 1, "content": "7"}, "tool_call_id"),
        ({"role": "assistant", "content": "a", "function_call": {"name": "f", "arguments": ""}}, "function_call"),
        ({"role": "assistant", "content": "a", "audio": {"id": "1"}}, "audio"),
        ({"role": "assistant", "tool_calls": [{"id": "1"}]}, "tool_calls.0.type"),
        ({"role": "assistant", "tool_calls": [CALL | {"type": "custom"}]}, "tool_calls.0.type"),
        ({"role": "assistant", "tool_calls": [CALL | {"id": None}]}, "tool_calls.0.id"),
        ({"role": "assistant", "tool_calls": [CALL | {"function": {}}]}, "tool_calls.0.function.name"),
        ({"role": "assistant", "tool_calls": [CALL | {"function": {"name": "f", "arguments": 1}}]}, ARGUMENTS),
        (USER | {"tool_calls": [CALL]}, "tool_calls"),
        (USER | {"name": 5}, "name"),
        ({"role": "user", "content": [text("refusal", "no")]}, "content"),
    ],
)
def test_what_a_role_does_not_have(message: dict[str, Any], param: str) -> None:
    client = Client()
    reply = client.chat(messages=[message])
    assert (reply.status, reply.error["param"]) == (400, f"messages.0.{param}")
    assert client.engine.submitted == []


def test_old_functions_are_pointed_to_tools() -> None:
    for message in ({"role": "function", "name": "f", "content": "7"}, CALLING | {"function_call": {"name": "f"}}):
        assert "tool" in Client().chat(messages=[message]).error["message"]


def test_a_result_carries_the_name_of_its_call() -> None:
    messages = [Message.model_validate(each) for each in (CALLING, RESULT, RESULT | {"tool_call_id": "other"})]
    calling, result, other = turns_of(messages)
    assert calling["tool_calls"][0]["function"] == {"name": "f", "arguments": {"x": 1}}
    assert (result["name"], result["tool_call_id"]) == ("f", "call_1")
    assert "name" not in other


@pytest.mark.parametrize("arguments", ["{", "[1]", "[" * 100_000, "7"])
def test_arguments_that_are_no_object_stay_text(arguments: str) -> None:
    call = CALL | {"function": {"name": "f", "arguments": arguments}}
    turn = Message.model_validate(CALLING | {"tool_calls": [call]}).turn()
    assert turn["tool_calls"][0]["function"]["arguments"] == arguments


@pytest.mark.parametrize("arguments", [{}, *({"arguments": value} for value in (None, "", " \n", "null", "{}"))])
def test_a_call_may_have_no_arguments(arguments: dict[str, Any]) -> None:
    call = CALL | {"function": {"name": "f"} | arguments}
    written = '<assistant><tool_call>\n{"name": "f", "arguments": {}}\n</tool_call></s>'
    assert prompt([{"role": "assistant", "tool_calls": [call]}]) == written + "<assistant>"
