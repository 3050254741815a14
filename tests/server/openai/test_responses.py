"""Tests /v1/responses: the answer as items and events, each of which the client here validates."""

import json
from typing import Any

import pytest

from octavo.engine.api import FinishReason, Grammar, Output
from octavo.engine.client import BadGrammar
from octavo.server.openai.responses_request import STATEFUL, ResponsesRequest
from tests.server.client import MODEL, Client, Reply
from tests.server.conversation.test_tools import CALLS, TOOLS, roomy
from tests.server.fake import FakeEngineClient, outputs_of, replay
from tests.server.generation.test_structured import OBJECT, SCHEMA
from tests.server.vocab import BYTES, EOS, byte_level, ids_of

INPUT_TEXT = {"type": "input_text", "text": "a"}
SYSTEM = "<system>s</s><user>a</s>"
HELLO = [*ids_of("héllo 🦑"), EOS]


def prompt_of(client: Client) -> str:
    return byte_level().backend.decode(list(client.engine.submitted[-1].prompt), skip_special_tokens=False)


def last_response(reply: Reply) -> dict[str, Any]:
    response = reply.named_events()[-1]["response"]
    assert isinstance(response, dict)
    return response


def same(response: dict[str, Any]) -> dict[str, Any]:
    """Returns the response without what differs from one request to the next."""
    items = [{key: value for key, value in item.items() if key != "id"} for item in response["output"]]
    times = {"id", "created_at", "completed_at"}
    return {key: value for key, value in response.items() if key not in times} | {"output": items}


def test_an_answer() -> None:
    client = Client.replaying(replay(HELLO, cached=2))
    body = client.respond().json()
    assert (body["status"], body["model"], body["error"], body["incomplete_details"]) == (
        "completed",
        MODEL,
        None,
        None,
    )
    (message,) = body["output"]
    assert message["content"] == [{"type": "output_text", "text": "héllo 🦑", "annotations": [], "logprobs": []}]
    assert body["usage"] == {
        "input_tokens": len(client.engine.submitted[0].prompt),
        "input_tokens_details": {"cached_tokens": 2, "cache_write_tokens": 0},
        "output_tokens": len(HELLO),
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": body["usage"]["input_tokens"] + len(HELLO),
    }
    assert body["id"].startswith("resp_") and message["id"].startswith("msg_")


def test_the_stream_ends_in_the_same_answer() -> None:
    client = Client.replaying(replay(HELLO))
    reply = client.respond(stream=True)
    assert same(last_response(reply)) == same(client.respond().json())
    types = [event["type"].removeprefix("response.") for event in reply.named_events()]
    assert types[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert set(types[4:-4]) == {"output_text.delta"}
    assert types[-4:] == ["output_text.done", "content_part.done", "output_item.done", "completed"]
    assert "[DONE]" not in reply.body.decode()


def test_an_answer_of_nothing_is_an_empty_message() -> None:
    client = Client.replaying(replay([EOS]))
    assert client.respond().json()["output"][0]["content"][0]["text"] == ""
    assert last_response(client.respond(stream=True))["output"][0]["content"][0]["text"] == ""


def test_an_answer_that_was_cut() -> None:
    client = Client.replaying(replay(ids_of("abcdef")))
    for response in (
        client.respond(max_output_tokens=3).json(),
        last_response(client.respond(max_output_tokens=3, stream=True)),
    ):
        assert (response["status"], response["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
        assert response["output"][0]["status"] == "incomplete"
        assert response["output"][0]["content"][0]["text"] == "abc"


@pytest.mark.parametrize(
    ("parameters", "prompt"),
    [
        ({"input": "a"}, "<user>a</s>"),
        ({"input": "a", "instructions": "s"}, SYSTEM),
        ({"input": "a", "instructions": None}, "<user>a</s>"),
        ({"input": [{"role": "developer", "content": "s"}, {"role": "user", "content": "a"}]}, SYSTEM),
        (
            {"input": [{"type": "message", "role": "user", "content": [INPUT_TEXT, INPUT_TEXT]}]},
            "<user>aa</s>",
        ),
    ],
)
def test_inputs(parameters: dict[str, Any], prompt: str) -> None:
    client = Client()
    assert client.respond(**parameters).status == 200
    assert prompt_of(client) == prompt + "<assistant>"


def test_an_answer_is_an_input() -> None:
    client = Client.replaying(replay([*ids_of("b"), EOS]))
    output = client.respond(input="a").json()["output"]
    client.respond(input=[{"role": "user", "content": "a"}, *output, {"role": "user", "content": "c"}])
    assert prompt_of(client) == "<user>a</s><assistant>b</s><user>c</s><assistant>"


def test_sampling_reaches_the_engine() -> None:
    client = Client()
    body = client.respond(temperature=0, top_p=0.5, max_output_tokens=2, top_k=7, seed=5, store=True).json()
    params = client.engine.submitted[0].params
    assert (params.temperature, params.top_p, params.max_tokens, params.top_k, params.seed) == (0, 0.5, 2, 7, 5)
    assert (body["temperature"], body["top_p"], body["max_output_tokens"]) == (0, 0.5, 2)


def test_what_was_asked_is_repeated() -> None:
    asked = {"instructions": "s", "metadata": {"a": "b"}, "text": {"format": {"type": "text"}}}
    body = Client().respond(**asked).json()
    assert {name: body[name] for name in asked} == asked
    assert (body["tools"], body["tool_choice"], body["parallel_tool_calls"]) == ([], "auto", True)


def test_a_template_that_knows_no_reasoning_passes_over_it() -> None:
    client = Client()
    thought = {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]}
    items = [
        {"role": "user", "content": "hi"},
        thought,
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "b"},
    ]
    effort = {"reasoning": {"effort": "high", "summary": "auto"}, "include": ["reasoning.encrypted_content"]}
    assert client.respond(input=items, **effort).status == 200
    assert client.respond(input=[item for item in items if item != thought]).status == 200
    assert client.engine.submitted[0].prompt == client.engine.submitted[1].prompt


def test_logprobs_when_included() -> None:
    client = Client.replaying(replay([*ids_of("é"), EOS]))
    asked = {"include": ["message.output_text.logprobs"], "top_logprobs": 1}
    (part,) = client.respond(**asked).json()["output"][0]["content"]
    assert [token["bytes"] for token in part["logprobs"]] == [[0xC3], [0xA9], list(b"</s>")]
    events = client.respond(**asked, stream=True).named_events()
    told = [token for event in events if event["type"] == "response.output_text.delta" for token in event["logprobs"]]
    assert told[0] == {
        "token": "\\xc3",
        "logprob": -0.75,
        "top_logprobs": [{"token": "\\xc4", "logprob": -0.5}],
    }
    assert client.respond(top_logprobs=1).json()["output"][0]["content"][0]["logprobs"] == []


@pytest.mark.parametrize(
    ("parameters", "param"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": 5}, "input"),
        ({"input": ["a"]}, "input.0"),
        ({"input": [{"content": "a"}]}, "input.0.role"),
        ({"input": [{"role": "user"}]}, "input.0.content"),
        ({"input": [{"role": "wizard", "content": "a"}]}, "input.0.role"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0.type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input.0.content.0.type"),
        ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "input.0.call_id"),
        ({"input": [{"type": "function_call_output", "call_id": "x"}]}, "input.0.output"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"n": 2}, "n"),
        ({"stream": "yes"}, "stream"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"truncation": "auto"}, "truncation"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"metadata": {str(i): "" for i in range(17)}}, "metadata"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"tool_choice": "perhaps"}, "tool_choice"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"text": {"schema": {"type": "object"}}}, "text.schema"),
        ({"text": {"format": {"type": "json_schema", "schema": {"type": "object"}}}}, "text.format.name"),
        ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format.schema"),
        ({"text": {"verbosity": "high"}}, "text.verbosity"),
        ({"reasoning": {"effort": 5}}, "reasoning.effort"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True}, "background"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"input": "x" * 300}, "input"),
    ],
)
def test_bad_requests(parameters: dict[str, Any], param: str) -> None:
    client = Client()
    for stream in (False, True):
        reply = client.respond(**{"stream": stream} | parameters)
        assert (reply.status, reply.error["param"]) == (400, param)
        assert f"'{param}'" in reply.error["message"] or "context length" in reply.error["message"]
    assert client.engine.submitted == []


def test_null_is_absent() -> None:
    own = [name for name in ResponsesRequest.model_fields if name not in ("model", "input")]
    names = [*own, *STATEFUL, "user", "service_tier", "safety_identifier", "stream_options", "top_k", "seed"]
    client = Client()
    assert same(client.respond(**dict.fromkeys(names)).json()) == same(client.respond().json())


def test_an_unknown_model() -> None:
    assert Client().respond(model="other").status == 404


def test_a_failure_after_the_first_byte_is_the_last_event() -> None:
    def script(request: Any) -> list[Output]:
        return [
            *outputs_of(request, ids_of("ab"))[:1],
            Output(request.id, finish_reason=FinishReason.ERROR, error="boom"),
        ]

    client = Client(FakeEngineClient(script))
    event = client.respond(stream=True).named_events()[-1]
    assert (event["type"], event["response"]["error"]["message"]) == ("response.failed", "boom")
    assert client.respond().status == 500
    assert all(generation.closed for generation in client.engine.generations)


def test_calls_of_functions() -> None:
    client = roomy(replay([*ids_of(CALLS), EOS]))
    tools = [{"type": "function"} | tool["function"] for tool in TOOLS]
    whole = client.respond(tools=tools).json()
    assert [item["type"] for item in whole["output"]] == ["message", "function_call", "function_call"]
    assert [(item["name"], item["arguments"]) for item in whole["output"][1:]] == [("f", '{"x": 1}'), ("g", '{"x": 2}')]
    assert (whole["tools"], whole["tool_choice"], whole["status"]) == (tools, "auto", "completed")
    streamed = last_response(client.respond(tools=tools, stream=True))
    for ours, theirs in zip(streamed["output"], whole["output"], strict=True):
        assert ours | {"id": "", "call_id": ""} == theirs | {"id": "", "call_id": ""}


@pytest.mark.parametrize(
    ("parameters", "param"),
    [
        ({"tools": [{"type": "function", "name": "f", "parameters": {"type": "string"}}]}, "tools"),
        ({"tools": [{"type": "function", "name": "two words"}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "name": "nobody"}}, "tool_choice"),
    ],
)
def test_what_the_chat_request_refuses_is_told_in_this_bodys_names(parameters: dict[str, Any], param: str) -> None:
    reply = Client().respond(**parameters)
    assert (reply.status, reply.error["param"]) == (400, param)
    assert "function.name" not in reply.error["message"]


@pytest.mark.parametrize(
    ("form", "grammar"),
    [
        ({"type": "text", "name": "unheard"}, None),
        ({"type": "json_object"}, OBJECT),
        ({"type": "json_schema", "name": "n", "schema": SCHEMA}, Grammar("json", json.dumps(SCHEMA))),
    ],
)
def test_formats_bind_the_answer(form: dict[str, Any], grammar: Grammar | None) -> None:
    client = Client()
    body = client.respond(text={"format": form}).json()
    assert client.engine.submitted[0].params.grammar == grammar
    assert body["text"]["format"] == (form if form["type"] == "json_schema" else {"type": form["type"]})


def test_a_format_that_cannot_be_is_told_in_this_bodys_names() -> None:
    client = Client(FakeEngineClient(complaint=BadGrammar("impossible")))
    form = {"type": "json_schema", "name": "n", "schema": SCHEMA}
    reply = client.respond(text={"format": form})
    assert (reply.status, reply.error["param"]) == (400, "text.format")
    assert client.respond(text={"format": form}, structured_outputs={"regex": "a"}).status == 400


def test_split_characters_are_not_lost() -> None:
    ids = [BYTES + 0xF0, BYTES + 0x9F, BYTES + 0xA6, BYTES + 0x91, EOS]
    client = Client.replaying(replay(ids))
    deltas = [e["delta"] for e in client.respond(stream=True).named_events() if e["type"].endswith("text.delta")]
    assert deltas == ["🦑"]
