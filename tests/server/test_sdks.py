"""The openai SDK uses /v1/responses, and the anthropic SDK /v1/messages, over a real socket."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import anthropic
import openai
import pytest

from octavo.server.config import ServerConfig
from tests.server.client import MODEL, Client
from tests.server.fake import READY, FakeEngineClient, replay
from tests.server.live import live
from tests.server.text.test_reasoning_tags import OPENS
from tests.server.vocab import CHATML, EOS, byte_level, ids_of

HELLO = [*ids_of("héllo 🦑"), EOS]
CALL = [*ids_of('See: <tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'), EOS]
SCHEMA = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
FUNCTION: dict[str, Any] = {"type": "function", "name": "f", "parameters": SCHEMA, "strict": None}
TOOL: dict[str, Any] = {"name": "f", "input_schema": SCHEMA}


def serving(answer: list[int], template: str = CHATML) -> Client:
    engine = FakeEngineClient(replay(answer), replace(READY, max_model_len=4096))
    return Client(engine, byte_level(template), ServerConfig((MODEL,), api_keys=("secret",)))


def prompt_of(client: Client) -> str:
    return byte_level().backend.decode(list(client.engine.submitted[-1].prompt), skip_special_tokens=False)


@contextmanager
def openai_client(server: Client) -> Iterator[Any]:
    with live(server) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="secret", max_retries=0) as client:
        yield client


@contextmanager
def anthropic_client(server: Client, key: str = "secret") -> Iterator[Any]:
    with live(server) as url, anthropic.Anthropic(base_url=url, api_key=key, max_retries=0) as client:
        yield client


def test_a_response() -> None:
    with openai_client(serving(HELLO)) as client:
        response = client.responses.create(model=MODEL, input="hi", instructions="s", store=False)
        assert (response.output_text, response.status) == ("héllo 🦑", "completed")
        with pytest.raises(openai.BadRequestError) as caught:
            client.responses.create(model=MODEL, input="hi", previous_response_id="resp_1")
        assert caught.value.param == "previous_response_id"


def test_a_streamed_response() -> None:
    with openai_client(serving(HELLO)) as client, client.responses.stream(model=MODEL, input="hi") as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        assert text == stream.get_final_response().output_text == "héllo 🦑"


def test_a_response_that_calls_a_function_and_what_comes_of_it() -> None:
    server = serving(CALL)
    with openai_client(server) as client:
        with client.responses.stream(model=MODEL, input="hi", tools=[FUNCTION]) as stream:
            streamed = stream.get_final_response().output
        whole = client.responses.create(model=MODEL, input="hi", tools=[FUNCTION]).output
        for message, call in (streamed, whole):
            assert message.content[0].text.strip() == "See:"
            assert (call.type, call.name, call.arguments) == ("function_call", "f", '{"x": 1}')
        result = {"type": "function_call_output", "call_id": whole[1].call_id, "output": "41"}
        items = [{"role": "user", "content": "hi"}, *(item.model_dump(exclude_none=True) for item in whole), result]
        client.responses.create(model=MODEL, input=items, tools=[FUNCTION])
    assert '"arguments": {"x": 1}' in prompt_of(server) and "41" in prompt_of(server)


def test_a_message() -> None:
    with anthropic_client(serving(HELLO)) as client:
        messages = [{"role": "user", "content": "hi"}]
        message = client.messages.create(model=MODEL, max_tokens=50, messages=messages, stop_sequences=[" 🦑"])
        assert (message.content[0].text, message.stop_reason, message.stop_sequence) == (
            "héllo",
            "stop_sequence",
            " 🦑",
        )
        assert client.messages.count_tokens(model=MODEL, messages=messages).input_tokens == message.usage.input_tokens
        with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
            client.messages.create(model=MODEL, max_tokens=0, messages=messages)
        with pytest.raises(anthropic.NotFoundError):
            client.messages.create(model="other", max_tokens=5, messages=messages)


def test_a_wrong_key() -> None:
    with anthropic_client(serving(HELLO), "wrong") as client, pytest.raises(anthropic.AuthenticationError):
        client.messages.create(model=MODEL, max_tokens=5, messages=[{"role": "user", "content": "hi"}])


def test_a_streamed_message() -> None:
    messages = [{"role": "user", "content": "hi"}]
    with (
        anthropic_client(serving(HELLO)) as client,
        client.messages.stream(model=MODEL, max_tokens=50, messages=messages) as stream,
    ):
        assert "".join(stream.text_stream) == "héllo 🦑"
        message = stream.get_final_message()
    assert (message.stop_reason, message.usage.output_tokens) == ("end_turn", len(HELLO))


def test_a_message_that_uses_a_tool_and_what_comes_of_it() -> None:
    server = serving(CALL)
    asked: dict[str, Any] = {"model": MODEL, "max_tokens": 100, "tools": [TOOL]}
    messages = [{"role": "user", "content": "hi"}]
    with anthropic_client(server) as client:
        with client.messages.stream(**asked, messages=messages) as stream:
            streamed = stream.get_final_message()
        whole = client.messages.create(**asked, messages=messages)
        for message in (streamed, whole):
            text, use = message.content
            assert text.text.strip() == "See:" and message.stop_reason == "tool_use"
            assert (use.type, use.name, use.input) == ("tool_use", "f", {"x": 1})
        content = [block.model_dump(exclude_none=True) for block in whole.content]
        result = {"type": "tool_result", "tool_use_id": whole.content[1].id, "content": "41"}
        turns = [{"role": "assistant", "content": content}, {"role": "user", "content": [result]}]
        client.messages.create(**asked, messages=messages + turns)
    assert '"arguments": {"x": 1}' in prompt_of(server) and "41" in prompt_of(server)


def test_models_for_both() -> None:
    server = serving(HELLO)
    with openai_client(server) as client:
        assert [model.id for model in client.models.list()] == [MODEL]
        assert client.models.retrieve(MODEL).object == "model"
    with anthropic_client(server) as client:
        page = client.models.list()
        assert [(model.id, model.display_name) for model in page] == [(MODEL, MODEL)]
        assert (page.has_more, page.first_id, page.last_id) == (False, MODEL, MODEL)
        one = client.models.retrieve(MODEL)
        assert (one.type, one.lifecycle, one.created_at.tzinfo is not None) == ("model", "active", True)


def test_errors_as_each_sdk_reads_them() -> None:
    server = serving(HELLO)
    messages: list[Any] = [{"role": "user", "content": "hi"}]
    with openai_client(server) as client:
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(model=MODEL, messages=messages, temperature=3)
        assert (refused.value.code, refused.value.param) == ("decimal_above_max_value", "temperature")
    with anthropic_client(server) as client:
        with pytest.raises(anthropic.BadRequestError) as invalid:
            client.messages.create(model=MODEL, max_tokens=5, messages=messages, extra_body={"temperature": 3})
        assert invalid.value.request_id and invalid.value.body["request_id"] == invalid.value.request_id
        large = [{"role": "user", "content": "hi" * 5_000_000}]
        with pytest.raises(anthropic.APIStatusError) as refused_large:
            client.messages.create(model=MODEL, max_tokens=5, messages=large)
        assert (refused_large.value.status_code, refused_large.value.body["error"]["type"]) == (
            413,
            "request_too_large",
        )
        assert client.messages.create(model=MODEL, max_tokens=5, messages=messages)._request_id


def test_the_end_of_a_stream() -> None:
    call: dict[str, Any] = {"model": MODEL, "stream": True, "stream_options": {"include_usage": True}}
    with openai_client(serving(HELLO)) as client:
        *chunks, ended, usage = client.chat.completions.create(messages=[{"role": "user", "content": "hi"}], **call)
        assert ended.choices[0].delta.model_dump(exclude_none=True) == {}
        assert (ended.choices[0].finish_reason, usage.choices, usage.usage.completion_tokens) == (
            "stop",
            [],
            len(HELLO),
        )
        assert {chunk.choices[0].finish_reason for chunk in chunks} == {chunk.usage for chunk in chunks} == {None}
        *texts, last, usage = client.completions.create(prompt="hi", **call)
        assert (last.choices[0].text, last.choices[0].finish_reason) == ("", "stop")
        assert "".join(text.choices[0].text for text in texts) == "héllo 🦑"
        assert all(text.usage is None for text in (*texts, last)) and usage.usage is not None


def test_what_a_thinking_agent_sends() -> None:
    messages: list[Any] = [{"role": "user", "content": "hi"}]
    with anthropic_client(serving(HELLO)) as client:
        thinking: Any = {"type": "enabled", "budget_tokens": 1024}
        message = client.messages.create(model=MODEL, max_tokens=10_000, messages=messages, thinking=thinking)
        assert (message.content[0].text, message.stop_reason) == ("héllo 🦑", "end_turn")
    with openai_client(serving(HELLO)) as client:
        client.chat.completions.create(model=MODEL, messages=messages, reasoning_effort="high")
        client.responses.create(model=MODEL, input="hi", reasoning={"effort": "low", "summary": "auto"})


THOUGHTS = [*ids_of("\nSo, 1 + 1.\n</think>\n\nTwo."), EOS]


def test_openai_reads_reasoning_and_takes_it_back() -> None:
    messages: list[Any] = [{"role": "user", "content": "hi"}]
    with openai_client(serving(THOUGHTS, OPENS)) as client:
        message = client.chat.completions.create(model=MODEL, messages=messages).choices[0].message
        assert (message.reasoning_content, message.content) == ("So, 1 + 1.", "Two.")
        again = [*messages, message.model_dump(exclude_none=True), *messages]
        assert client.chat.completions.create(model=MODEL, messages=again).choices[0].message.content == "Two."
        with client.responses.stream(model=MODEL, input="hi") as stream:
            types = [event.type for event in stream]
            response = stream.get_final_response()
        assert types.count("response.reasoning_text.done") == 1 and "response.reasoning_text.delta" in types
        assert [item.type for item in response.output] == ["reasoning", "message"]
        assert (response.output[0].content[0].text, response.output_text) == ("So, 1 + 1.", "Two.")
        history = [*messages, *(item.model_dump(exclude_none=True) for item in response.output), *messages]
        assert client.responses.create(model=MODEL, input=history).output_text == "Two."


def test_anthropic_reads_thinking_and_takes_it_back() -> None:
    messages: list[Any] = [{"role": "user", "content": "hi"}]
    asked: dict[str, Any] = {"model": MODEL, "max_tokens": 100}
    with anthropic_client(serving(THOUGHTS, OPENS)) as client:
        with client.messages.stream(**asked, messages=messages) as stream:
            streamed = stream.get_final_message()
        whole = client.messages.create(**asked, messages=messages)
        for message in (streamed, whole):
            thought, text = message.content
            assert (thought.type, thought.thinking, text.text) == ("thinking", "So, 1 + 1.", "Two.")
            assert thought.signature
        again = [*messages, {"role": "assistant", "content": whole.content}, *messages]
        assert client.messages.create(**asked, messages=again).content[1].text == "Two."


BROKEN = ids_of('<tool_call>\n{"name": "f", "arguments": {"x": 1, "y": "ab')


def test_a_call_that_was_broken_off() -> None:
    """The accumulators of both SDKs read what there is, and neither is told to make the call."""
    with openai_client(serving(BROKEN)) as client:
        with client.responses.stream(model=MODEL, input="hi", tools=[FUNCTION]) as stream:
            *_, last = stream
        call = last.response.output[0]
        assert (last.type, call.status, call.arguments) == ("response.incomplete", "incomplete", '{"x": 1, "y": "ab')
    with anthropic_client(serving([*BROKEN, EOS])) as client:
        asked: Any = {
            "model": MODEL,
            "max_tokens": 100,
            "messages": [{"role": "user", "content": "hi"}],
            "tools": [TOOL],
        }
        with client.messages.stream(**asked) as stream:
            streamed = stream.get_final_message()
        whole = client.messages.create(**asked)
        for message in (streamed, whole):
            assert (message.stop_reason, message.content[0].input["x"]) == ("end_turn", 1)
