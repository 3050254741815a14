"""No text from a client, a model or a template breaks an encoder: each is answered, whole or streamed, or refused."""

from dataclasses import replace
from typing import Any

import pytest

from octavo.server.config import ServerConfig
from tests.server.client import MODEL, Client
from tests.server.fake import READY, FakeEngineClient, replay
from tests.server.vocab import EOS, byte_level, ids_of

HALF = r"\ud83d"  # the escape of half an emoji
ARGUMENTS = r'{"x": "\ud83d"}'


def roomy(answer: str = "ok", template: str | None = None, **config: Any) -> Client:
    """Returns a client of a model that answers with this text, and whose context holds long prompts."""
    engine = FakeEngineClient(replay([*ids_of(answer), EOS]), replace(READY, max_model_len=10**6))
    return Client(engine, byte_level(template) if template else byte_level(), ServerConfig((MODEL,), **config))


def bodies(json_text: str) -> list[tuple[str, str]]:
    """Returns bodies for every endpoint that reads one, each with the JSON text in its strings, names and arguments."""
    parameters = f'{{"type": "object", "title": "{HALF}"}}'
    tool = f'{{"type": "function", "function": {{"name": "f", "description": "{HALF}", "parameters": {parameters}}}}}'
    arguments = json_text.replace("\\", "\\\\").replace('"', '\\"')
    call = f'{{"id": "{HALF}", "type": "function", "function": {{"name": "{HALF}", "arguments": "{arguments}"}}}}'
    messages = (
        f'[{{"role": "user", "name": "{HALF}", "content": "a{HALF}"}}, {{"role": "assistant", "tool_calls": [{call}]}},'
        f'{{"role": "tool", "tool_call_id": "{HALF}", "content": [{{"type": "text", "text": "{HALF}"}}]}}]'
    )
    common = f'"model": "{MODEL}", "max_tokens": 5, "stop": ["{HALF}"], "user": "{HALF}", "{HALF}": "{HALF}"'
    chat = f'{{{common}, "tools": [{tool}], "chat_template_kwargs": {{"a": "{HALF}"}}, "messages": {messages}}}'
    items = (
        f'[{{"role": "user", "content": "{HALF}"}}, {{"type": "function_call", "call_id": "{HALF}", "name": "{HALF}",'
        f'"arguments": "{arguments}"}}, {{"type": "function_call_output", "call_id": "{HALF}", "output": "{HALF}"}}]'
    )
    blocks = (
        f'[{{"role": "user", "content": "{HALF}"}}, {{"role": "assistant", "content": [{{"type": "tool_use",'
        f'"id": "{HALF}", "name": "{HALF}", "input": {json_text}}}]}},'
        f'{{"role": "user", "content": [{{"type": "tool_result", "tool_use_id": "{HALF}", "content": "{HALF}"}}]}}]'
    )
    return [
        ("/v1/completions", f'{{{common}, "prompt": "{HALF}", "echo": true}}'),
        ("/v1/chat/completions", chat),
        ("/apply-template", chat),
        ("/tokenize", chat),
        ("/tokenize", f'{{"prompt": "{HALF}", "return_token_strs": true}}'),
        ("/v1/responses", f'{{"model": "{MODEL}", "metadata": {{"{HALF}": "{HALF}"}}, "input": {items}}}'),
        ("/v1/messages", f'{{"model": "{MODEL}", "max_tokens": 5, "system": "{HALF}", "messages": {blocks}}}'),
        ("/v1/messages/count_tokens", f'{{"model": "{MODEL}", "messages": {blocks}}}'),
    ]


@pytest.mark.parametrize("place", range(len(bodies("{}"))))
def test_half_an_emoji_anywhere_is_taken(place: int) -> None:
    path, body = bodies(ARGUMENTS)[place]
    reply = roomy().post(path, body.encode())
    assert reply.status == 200, reply.body


@pytest.mark.parametrize("place", range(len(bodies("{}"))))
@pytest.mark.parametrize("number", ["1e999", "NaN", "9" * 309, "9" * 10_000])
def test_a_number_of_any_size_is_taken_or_refused(place: int, number: str) -> None:
    path, body = bodies(f'{{"x": {number}}}')[place]
    assert roomy().post(path, body.encode()).status in (200, 400)


@pytest.mark.parametrize("name", ["unknown", "metadata", "chat_template_kwargs", "temperature", "max_tokens", "tools"])
@pytest.mark.parametrize("number", ["1e999", "-Infinity", "9" * 309, "9" * 4300, "9" * 10_000])
def test_a_huge_number_anywhere_in_a_body_is_refused(name: str, number: str) -> None:
    body = f'{{"model": "{MODEL}", "messages": [{{"role": "user", "content": "a"}}], "{name}": {{"a": [{number}]}}}}'
    reply = roomy().post("/v1/chat/completions", body.encode())
    assert (reply.status, reply.error["type"]) == (400, "invalid_request_error")
    assert len(reply.error["message"]) < 200


@pytest.mark.parametrize("written", [ARGUMENTS, r'{"\ud83d": 1}', '{"x": 1e999}', '{"x": %s}' % ("9" * 5000)])
@pytest.mark.parametrize("stream", [False, True])
def test_whatever_a_model_writes_as_a_call_is_answered(written: str, stream: bool) -> None:
    tool: Any = {"type": "function", "function": {"name": "f"}}
    for members in (
        f'"name": "f", "arguments": {written}',
        f'"arguments": {written}, "name": "f"',
        f'"name": "{HALF}"',
    ):
        call = f"{{{members}}}"
        client = roomy(f"<tool_call>{call}</tool_call>")
        replies = [
            client.chat(tools=[tool], stream=stream),
            client.respond(tools=[{"type": "function", "name": "f"}], stream=stream),
            client.message(tools=[{"name": "f", "input_schema": {"type": "object"}}], stream=stream, max_tokens=10_000),
        ]
        assert [reply.status for reply in replies] == [200, 200, 200]
        assert not any(b'"error":{' in reply.body or b'"type":"error"' in reply.body for reply in replies)


@pytest.mark.parametrize("source", [r"{{ '\ud83d' }}{{ messages[0].content }}", r"{{ {'\ud83d': '\ud83d'} | tojson }}"])
@pytest.mark.parametrize("trusted", [False, True])
def test_a_template_may_write_half_an_emoji(source: str, trusted: bool) -> None:
    body: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "a"}], "max_tokens": 5}
    client = roomy(trust_request_chat_template=True) if trusted else roomy(template=source)
    if trusted:
        body["chat_template"] = source
    for path in ("/v1/chat/completions", "/apply-template", "/tokenize"):
        assert client.post(path, body).status == 200
    assert "\ufffd" in client.post("/apply-template", body).json()["prompt"]


def test_a_template_may_refuse_with_half_an_emoji() -> None:
    client = roomy(template=r"{{ raise_exception('\ud83d') }}")
    reply = client.chat()
    assert reply.status == 400
    assert "\ufffd" in reply.error["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_text_may_be_logged(stream: bool) -> None:
    client = roomy(log_text=True)
    message = f'{{"role": "user", "content": "{HALF}"}}'
    body = f'{{"model": "{MODEL}", "messages": [{message}], "stream": {str(stream).lower()}}}'
    assert client.post("/v1/chat/completions", body.encode()).status == 200
