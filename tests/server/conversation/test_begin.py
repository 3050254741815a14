"""Tests how a chat request becomes a prompt: prefill, the generation prompt, templates of clients."""

from dataclasses import replace
from typing import Any

import pytest

from octavo.server.text.template import ChatTemplate
from octavo.server.text.tokenizer import Tokenizer
from tests.server.client import MODEL, Client
from tests.server.fake import replay
from tests.server.openai.test_chat import streamed
from tests.server.text.real_templates import ALL, SPECIAL
from tests.server.vocab import BOS, byte_level, ids_of

BEGUN = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "Once "}]
OWN = "{% for m in messages %}({{ m.content }}){% endfor %}{{ bos_token }}{{ mood }}"


def prompt(client: Client | None = None, **parameters: Any) -> str:
    client = client or Client()
    reply = client.chat(**parameters)
    assert reply.status == 200, reply.error
    return client.tokenizer.backend.decode(list(client.engine.submitted[-1].prompt), skip_special_tokens=False)


def test_the_final_message_goes_on() -> None:
    assert prompt(messages=BEGUN) == "<user>a</s><assistant>Once </s><assistant>"
    for generation in ({}, {"add_generation_prompt": False}, {"add_generation_prompt": None}):
        assert prompt(messages=BEGUN, continue_final_message=True, **generation) == "<user>a</s><assistant>Once "


def test_only_what_is_new_is_answered() -> None:
    client = Client.replaying(replay(ids_of("upon")))
    parameters: dict[str, Any] = {"messages": BEGUN, "continue_final_message": True, "add_generation_prompt": False}
    whole = client.chat(**parameters).json()
    assert whole["choices"][0]["message"]["content"] == "upon"
    assert whole["usage"]["prompt_tokens"] == len(client.engine.submitted[0].prompt)
    assert streamed(client.chat(**parameters, stream=True))[0] == whole["choices"][0]


def test_a_template_that_trims_and_one_that_closes_late() -> None:
    for source in (
        "{% for m in messages %}[{{ m.content | trim }}]{% endfor %}",
        "{% for m in messages %}[{{ m.content }}{% if loop.last %}{{ messages[0].content }}{% endif %}]{% endfor %}",
    ):
        client = Client(tokenizer=byte_level(source))
        assert prompt(client, messages=BEGUN, continue_final_message=True) == "[a][Once "


def test_a_final_message_with_calls_goes_on_after_them() -> None:
    calls = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": ""}}]
    messages = [BEGUN[0], {"role": "assistant", "content": "So:", "tool_calls": calls}]
    written = 'So:\n<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
    assert prompt(messages=messages, continue_final_message=True) == "<user>a</s><assistant>" + written


def test_an_empty_beginning_only_opens_the_turn() -> None:
    empty = [BEGUN[0], BEGUN[1] | {"content": ""}]
    assert prompt(messages=empty, continue_final_message=True) == "<user>a</s><assistant>"


@pytest.mark.parametrize(
    "parameters",
    [
        {"messages": BEGUN, "add_generation_prompt": True},
        {"messages": BEGUN[:1]},
    ],
)
def test_what_cannot_go_on(parameters: dict[str, Any]) -> None:
    reply = Client().chat(**parameters, continue_final_message=True)
    assert (reply.status, reply.error["param"]) == (400, "continue_final_message")


def test_a_template_that_hides_the_last_message() -> None:
    client = Client(tokenizer=byte_level("{{ messages[0].content }}"))
    reply = client.chat(messages=BEGUN, continue_final_message=True)
    assert (reply.status, reply.error["param"]) == (400, "continue_final_message")


def test_without_the_generation_prompt() -> None:
    assert prompt(add_generation_prompt=False) == "<user>hi</s>"
    assert prompt(add_generation_prompt=None) == prompt(add_generation_prompt=True) == "<user>hi</s><assistant>"


def test_a_template_of_the_client_only_where_that_is_allowed() -> None:
    reply = Client().chat(chat_template=OWN)
    assert (reply.status, reply.error["param"]) == (400, "chat_template")
    assert "--trust-request-chat-template" in reply.error["message"]
    trusting = Client.replaying(replay((65,)), trust_request_chat_template=True)
    assert prompt(trusting, chat_template=OWN) == "(hi)<s>"
    assert prompt(trusting, chat_template=None) == prompt(trusting, chat_template="") == prompt()
    without = Client.replaying(replay((65,)), byte_level(template=None), trust_request_chat_template=True)
    assert prompt(without, chat_template=OWN) == "(hi)"


@pytest.mark.parametrize(
    ("source", "param"),
    [
        ("{% if %}", "chat_template"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "chat_template"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "messages"),
    ],
)
def test_a_broken_template_of_the_client(source: str, param: str) -> None:
    reply = Client.replaying(replay((65,)), trust_request_chat_template=True).chat(chat_template=source)
    assert (reply.status, reply.error["param"]) == (400, param)


def test_a_template_of_the_client_that_takes_too_much() -> None:
    client = Client.replaying(replay((65,)), trust_request_chat_template=True)
    body = {"model": MODEL, "messages": BEGUN, "chat_template": "{{ 'a' * 10**9 }}"}
    for path in ("/v1/chat/completions", "/apply-template", "/tokenize"):
        reply = client.post(path, body)
        assert (reply.status, reply.error["param"]) == (400, "chat_template")
        assert "too much memory" in reply.error["message"]
    shown = client.post("/apply-template", body | {"chat_template": OWN}).json()
    assert shown == {"prompt": "(a)(Once )<s>"}
    tokens = client.post("/tokenize", body | {"chat_template": OWN}).json()["tokens"]
    assert tokens == [*ids_of("(a)(Once )"), BOS]


def test_further_variables_of_the_template() -> None:
    client = Client(tokenizer=byte_level(OWN))
    assert prompt(client, chat_template_kwargs={"mood": "!"}) == "(hi)<s>!"
    assert prompt(client, chat_template_kwargs=None) == prompt(client, chat_template_kwargs={}) == "(hi)<s>"


@pytest.mark.parametrize("name", ["messages", "tools", "add_generation_prompt", "continue_final_message"])
def test_variables_that_have_parameters_of_their_own(name: str) -> None:
    reply = Client().chat(chat_template_kwargs={name: False})
    assert (reply.status, reply.error["param"]) == (400, "chat_template_kwargs") and name in reply.error["message"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("continue_final_message", 1),
        ("add_generation_prompt", "no"),
        ("chat_template", 5),
        ("chat_template_kwargs", "x"),
        ("chat_template_kwargs", [1]),
    ],
)
def test_bounds(name: str, value: Any) -> None:
    reply = Client().chat(**{name: value})
    assert (reply.status, reply.error["param"]) == (400, name)
    assert Client().chat(**{name: None}).status == 200


def test_conversations_with_tools_may_have_a_template_of_their_own() -> None:
    tokenizer = Tokenizer(byte_level().backend, ChatTemplate("plain", tool_source="tools"))
    tools = [{"type": "function", "function": {"name": "f"}}]
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    calling = {"role": "assistant", "tool_calls": [call]}
    assert prompt(Client(tokenizer=tokenizer)) == "plain"
    assert prompt(Client(tokenizer=tokenizer), tools=tools, tool_choice="none") == "plain"
    assert prompt(Client(tokenizer=tokenizer), tools=tools) == "tools"
    assert prompt(Client(tokenizer=tokenizer), messages=[BEGUN[0], calling]) == "tools"
    assert (
        prompt(Client(tokenizer=tokenizer), messages=[{"role": "tool", "content": "7", "tool_call_id": "1"}]) == "tools"
    )


def test_a_template_for_tools_whose_calls_cannot_be_read_is_passed_over() -> None:
    own, tools = ChatTemplate(ALL["olmoe"], SPECIAL, ALL["deepseek"]), [{"type": "function", "function": {"name": "f"}}]
    client = Client.replaying(replay((65,)), Tokenizer(byte_level().backend, own))
    assert client.engine.ready is not None
    client.engine.state = replace(client.engine.ready, max_model_len=2048)
    assert '{"name": "...", "arguments": {...}}' in prompt(client, tools=tools)
    calling = {"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f"}}]}
    assert "<|tool_calls_begin|>" in prompt(client, messages=[BEGUN[0], calling])


LONG = "a" * 70_000  # more than the context holds


def test_what_users_say_is_refused_by_its_length_before_it_is_rendered(monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client()
    monkeypatch.setattr(ChatTemplate, "render", lambda *given: pytest.fail("it was rendered"))
    reply = client.chat(messages=[{"role": "user", "content": LONG}])
    assert (reply.status, reply.error["code"]) == (400, "context_length_exceeded")


def test_space_that_a_template_strips_does_not_count() -> None:
    client = Client(tokenizer=byte_level("{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}{% endfor %}"))
    assert client.chat(messages=[{"role": "user", "content": " " * len(LONG) + "a"}]).status == 200
