"""Tests /v1/messages: the answer as blocks and events, each of which the client here validates."""

import json
from typing import Any

import pytest

from octavo.engine.api import FinishReason, Grammar, Output
from octavo.engine.client import Loading, QueueFull
from octavo.server.anthropic.request import UNSUPPORTED, CountRequest, MessagesRequest
from tests.server.client import MODEL, Client, Reply
from tests.server.conversation.test_tools import CALLS, TOOLS, roomy
from tests.server.fake import FakeEngineClient, outputs_of, replay
from tests.server.generation.test_structured import SCHEMA
from tests.server.vocab import EOS, byte_level, ids_of

TEXT = {"type": "text", "text": "a"}
USER = {"role": "user", "content": "a"}
HELLO = [*ids_of("héllo 🦑"), EOS]


def prompt_of(client: Client) -> str:
    return byte_level().backend.decode(list(client.engine.submitted[-1].prompt), skip_special_tokens=False)


def joined(reply: Reply) -> dict[str, Any]:
    """Returns what the events add up to, put together as Anthropic's clients do it."""
    events = reply.named_events()
    inputs: dict[int, str] = {}
    message: dict[str, Any] = events[0]["message"]
    for event in events:
        match event["type"]:
            case "content_block_start":
                message["content"].append(event["content_block"])
            case "content_block_delta" if event["delta"]["type"] == "input_json_delta":
                inputs[event["index"]] = inputs.get(event["index"], "") + event["delta"]["partial_json"]
            case "content_block_delta":
                key = event["delta"]["type"].removesuffix("_delta")
                message["content"][event["index"]][key] += event["delta"][key]
            case "message_delta":
                message |= event["delta"] | {"usage": event["usage"]}
    for index, text in inputs.items():
        message["content"][index]["input"] = json.loads(text)
    return message


def test_an_answer() -> None:
    client = Client.replaying(replay(HELLO, cached=2))
    body = client.message().json()
    assert body.pop("id").startswith("msg_")
    assert body == {
        "type": "message",
        "role": "assistant",
        "model": MODEL,
        "content": [{"type": "text", "text": "héllo 🦑"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": len(client.engine.submitted[0].prompt) - 2,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 2,
            "output_tokens": len(HELLO),
            "output_tokens_details": {"thinking_tokens": 0},
        },
    }


@pytest.mark.parametrize(
    ("parameters", "stop_reason", "stop_sequence"),
    [
        ({}, "end_turn", None),
        ({"max_tokens": 3}, "max_tokens", None),
        ({"stop_sequences": ["x", "lo"]}, "stop_sequence", "lo"),
    ],
)
def test_events_add_up_to_the_whole(parameters: dict[str, Any], stop_reason: str, stop_sequence: str | None) -> None:
    client = Client.replaying(replay(HELLO, cached=2))
    whole = client.message(**parameters).json()
    streamed = joined(client.message(**parameters, stream=True))
    assert whole | {"id": ""} == streamed | {"id": ""}
    assert (whole["stop_reason"], whole["stop_sequence"]) == (stop_reason, stop_sequence)


def test_the_order_of_events() -> None:
    reply = Client.replaying(replay(HELLO)).message(stream=True)
    types = [event["type"] for event in reply.named_events()]
    assert types[:3] == ["message_start", "content_block_start", "ping"]
    assert set(types[3:-3]) == {"content_block_delta"}
    assert types[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert "[DONE]" not in reply.body.decode()


def test_an_answer_of_nothing_has_no_content() -> None:
    client = Client.replaying(replay([EOS]))
    assert client.message().json()["content"] == joined(client.message(stream=True))["content"] == []


@pytest.mark.parametrize(
    ("parameters", "prompt"),
    [
        ({"messages": [USER]}, "<user>a</s><assistant>"),
        ({"messages": [{"role": "user", "content": [TEXT, TEXT]}]}, "<user>aa</s><assistant>"),
        ({"messages": [USER], "system": "s"}, "<system>s</s><user>a</s><assistant>"),
        ({"messages": [USER], "system": [TEXT]}, "<system>a</s><user>a</s><assistant>"),
        (
            {"messages": [USER, {"role": "assistant", "content": [TEXT]}, USER]},
            "<user>a</s><assistant>a</s><user>a</s><assistant>",
        ),
    ],
)
def test_messages(parameters: dict[str, Any], prompt: str) -> None:
    client = Client()
    assert client.message(**parameters).status == 200
    assert prompt_of(client) == prompt
    count = client.post("/v1/messages/count_tokens", {"model": MODEL} | parameters).json()
    assert count == {"input_tokens": len(client.engine.submitted[0].prompt)}


def test_the_last_message_of_the_assistant_is_continued() -> None:
    client = Client()
    assert client.message(messages=[USER, {"role": "assistant", "content": "b"}]).status == 200
    assert prompt_of(client) == "<user>a</s><assistant>b"


def test_sampling_reaches_the_engine() -> None:
    client = Client()
    client.message(temperature=0.25, top_p=0.5, top_k=7, max_tokens=2, min_p=0.125, metadata={"user_id": "u"})
    params = client.engine.submitted[0].params
    assert (params.temperature, params.top_p, params.top_k, params.max_tokens, params.min_p) == (0.25, 0.5, 7, 2, 0.125)


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages.0.content.0.type"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content.0.text"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_use"}]}]}, "messages.0.content.0.type"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]}, "messages.0.content.0.tool_use_id"),
        ({"system": 5}, "system"),
        ({"temperature": 1.5}, "temperature"),
        ({"top_p": -1}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"min_p": 2}, "min_p"),
        ({"n": 2}, "n"),
        ({"stop_sequences": ["a"] * 129}, "stop_sequences"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools.0.type"),
        ({"tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"tool_choice": {"type": "perhaps"}}, "tool_choice.type"),
        ({"thinking": {"type": "perhaps"}}, "thinking.type"),
        ({"output_config": {"effort": 5}}, "output_config.effort"),
        ({"output_config": {"type": "json_schema", "schema": {}}}, "output_config.schema"),
        ({"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}}, "context_management.edits.0.type"),
        ({"mcp_servers": [{"url": "x"}]}, "mcp_servers"),
        ({"messages": [{"role": "user", "content": "a" * 300}]}, "maximum context length"),
        ({"messages": [{"role": "user", "content": [{"type": "thinking", "thinking": "t"}]}]}, "messages.0.content.0"),
    ],
)
def test_bad_requests(parameters: dict[str, Any], named: str) -> None:
    client = Client()
    for stream in (False, True):
        reply = client.message(**{"stream": stream} | parameters)
        assert (reply.status, reply.error["type"]) == (400, "invalid_request_error")
        assert named in reply.error["message"]
    assert client.engine.submitted == []


def test_a_limit_beyond_the_context_is_cut() -> None:
    client = Client.replaying(replay(ids_of("a" * 300)))
    reply = client.message(max_tokens=100_000)
    request = client.engine.submitted[0]
    assert request.params.max_tokens == 256 - len(request.prompt)
    assert reply.json()["stop_reason"] == "model_context_window_exceeded"
    assert client.message(max_tokens=request.params.max_tokens).json()["stop_reason"] == "max_tokens"
    assert Client.replaying(replay(HELLO)).message(max_tokens=100_000).json()["stop_reason"] == "end_turn"
    assert client.chat(max_tokens=100_000).status == 400, "OpenAI's API refuses it"
    client.message(max_tokens=100_000, truncate_prompt_tokens=-1)
    assert client.engine.submitted[-1].prompt == request.prompt


def test_what_coding_agents_send() -> None:
    """These are the fields of an agent for a model that thinks; this one does not, and nothing else is lost."""
    client = Client.replaying(replay(HELLO))
    cached = {"cache_control": {"type": "ephemeral"}}
    thought = {"type": "thinking", "thinking": "hm", "signature": "s"}
    turns = [
        {"role": "user", "content": [TEXT | cached]},
        {"role": "assistant", "content": [thought, {"type": "redacted_thinking", "data": "x"}, TEXT]},
        {"role": "user", "content": "b"},
    ]
    for thinking in ({"type": "enabled", "budget_tokens": 31_999}, {"type": "adaptive"}, {"type": "disabled"}):
        reply = client.message(
            messages=turns,
            system=[TEXT | cached, {"type": "text", "text": "s"}],
            tools=[],
            metadata={"user_id": "u"},
            max_tokens=32_000,
            temperature=1,
            thinking=thinking,
            output_config={"effort": "max"},
            context_management={"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
            **cached,
        )
        assert (reply.status, reply.json()["content"]) == (200, [{"type": "text", "text": "héllo 🦑"}])
    assert prompt_of(client) == "<system>as</s><user>a</s><assistant>a</s><user>b</s><assistant>"


def test_null_is_absent() -> None:
    own = [name for name in MessagesRequest.model_fields if name not in ("model", "messages", "max_tokens")]
    nulls = dict.fromkeys([*own, *UNSUPPORTED, "min_p", "seed", "cache_control"])
    assert Client().message(**nulls).json() | {"id": ""} == Client().message().json() | {"id": ""}


def test_calls_of_tools() -> None:
    client = roomy(replay([*ids_of(CALLS), EOS]))
    tools = [{"name": tool["function"]["name"], "input_schema": tool["function"]["parameters"]} for tool in TOOLS]
    whole = client.message(tools=tools, max_tokens=200).json()
    assert [block["type"] for block in whole["content"]] == ["text", "tool_use", "tool_use"]
    assert [(block["name"], block["input"]) for block in whole["content"][1:]] == [("f", {"x": 1}), ("g", {"x": 2})]
    assert whole["stop_reason"] == "tool_use"
    streamed = joined(client.message(tools=tools, max_tokens=200, stream=True))
    assert [block | {"id": ""} for block in streamed["content"]] == [block | {"id": ""} for block in whole["content"]]
    count = client.post("/v1/messages/count_tokens", {"model": MODEL, "messages": [USER], "tools": tools})
    assert count.json()["input_tokens"] == whole["usage"]["input_tokens"] - len("hi") + len("a")


def test_a_format_binds_the_answer() -> None:
    client = Client()
    form = {"type": "json_schema", "schema": SCHEMA}
    assert client.message(output_config={"format": form}).status == 200
    assert client.engine.submitted[0].params.grammar == Grammar("json", json.dumps(SCHEMA))
    assert client.message(output_config={"format": {"type": "json_schema"}}).status == 400


def test_counting_takes_what_makes_the_prompt() -> None:
    body = {"model": MODEL, "messages": [USER]}
    client = Client()
    own = [name for name in CountRequest.model_fields if name not in body]
    plain = client.post("/v1/messages/count_tokens", body).json()
    assert client.post("/v1/messages/count_tokens", body | dict.fromkeys(own)).json() == plain
    assert client.post("/v1/messages/count_tokens", {"model": MODEL}).status == 400
    assert client.engine.submitted == []


@pytest.mark.parametrize(
    ("parameters", "engine", "status", "type"),
    [
        ({"model": "other"}, {}, 404, "not_found_error"),
        ({}, {"state": Loading()}, 503, "overloaded_error"),
        ({}, {"refusal": QueueFull("full")}, 429, "rate_limit_error"),
    ],
)
def test_failures_in_anthropics_shape(
    parameters: dict[str, Any], engine: dict[str, Any], status: int, type: str
) -> None:
    reply = Client(FakeEngineClient(**engine)).message(**parameters)
    assert (reply.status, reply.error["type"]) == (status, type)


def test_what_is_no_request_at_all() -> None:
    client = Client()
    assert client.post("/v1/messages", b"{").error["type"] == "invalid_request_error"
    assert client.get("/v1/messages").status == 405
    assert client.post("/v1/messages/nothing", {}).status == 404


def test_a_failure_after_the_first_byte_is_the_last_event() -> None:
    def script(request: Any) -> list[Output]:
        failure = Output(request.id, finish_reason=FinishReason.ERROR, error="boom")
        return [outputs_of(request, ids_of("ab"))[0], failure]

    client = Client(FakeEngineClient(script))
    reply = client.message(stream=True)
    event = reply.named_events()[-1]
    error = {"type": "api_error", "message": "boom"}
    assert event == {"type": "error", "error": error, "request_id": reply.headers["request-id"]}
    assert client.message().error == event["error"]
