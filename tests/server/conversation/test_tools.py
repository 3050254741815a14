"""Tests which tools may be offered and demanded, what the model is told of them, and its calls as clients get them."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from octavo.server.conversation.tools import MAX_TOOLS
from octavo.server.text.template import ChatTemplate
from octavo.server.text.tokenizer import Tokenizer
from tests.server.client import Client, Reply
from tests.server.fake import Script, replay
from tests.server.text.real_templates import ALL, LLAMA_31
from tests.server.text.test_template import MISTRAL_TOOLS, SPECIAL
from tests.server.vocab import EOS, byte_level, ids_of

SCHEMA = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
MESSAGES = [{"role": "user", "content": "hi"}]


def tool(name: str = "f", **function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": SCHEMA} | function}


TOOLS = [tool("f", description="Does f."), tool("g")]
CALLS = (
    'See: <tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>\n'
    '<tool_call>\n{"name": "g", "arguments": {"x": 2}}\n</tool_call>'
)


def mistral(source: str = MISTRAL_TOOLS, *more: str) -> Tokenizer:
    """Returns a tokenizer whose markers are special tokens, which decoding hides elsewhere."""
    backend = byte_level().backend
    backend.add_special_tokens(["[TOOL_CALLS]", *more])
    return Tokenizer(backend, ChatTemplate(source, SPECIAL))


def marker(tokenizer: Tokenizer) -> int:
    id = tokenizer.backend.token_to_id("[TOOL_CALLS]")
    assert id is not None
    return int(id)


def roomy(script: Script, tokenizer: Tokenizer | None = None) -> Client:
    """Returns a client whose context holds the description of tools."""
    client = Client.replaying(script, tokenizer)
    assert client.engine.ready is not None
    client.engine.state = replace(client.engine.ready, max_model_len=4096)
    return client


def prompt(client: Client, **parameters: Any) -> str:
    reply = client.chat(**parameters)
    assert reply.status == 200, reply.error
    return client.tokenizer.backend.decode(list(client.engine.submitted[-1].prompt), skip_special_tokens=False)


def streamed(reply: Reply) -> dict[int, dict[str, Any]]:
    """Returns what the chunks of each choice add up to, put together as clients do it, without ids."""
    choices: dict[int, dict[str, Any]] = {}
    for event in reply.events():
        for part in event["choices"]:
            choice = choices.setdefault(
                part["index"], {"content": "", "calls": [], "finish_reason": None, "tokens": []}
            )
            choice["content"] += part["delta"].get("content") or ""
            for call in part["delta"].get("tool_calls", ()):
                if "id" in call:
                    assert call["index"] == len(choice["calls"]) and call["type"] == "function" and call["id"]
                    choice["calls"].append({"name": call["function"]["name"], "arguments": ""})
                else:
                    assert "name" not in call["function"]
                choice["calls"][call["index"]]["arguments"] += call["function"]["arguments"]
            choice["finish_reason"] = part["finish_reason"]
            choice["tokens"] += [entry["token"] for entry in (part["logprobs"] or {"content": ()})["content"]]
    return choices


def whole(reply: Reply) -> dict[int, dict[str, Any]]:
    assert reply.status == 200, reply.error
    choices = {}
    for choice in reply.json()["choices"]:
        message = choice["message"]
        calls = message.get("tool_calls", [])
        assert (message["content"] is None) <= bool(calls)
        choices[choice["index"]] = {
            "content": message["content"] or "",
            "calls": [call["function"] for call in calls],
            "finish_reason": choice["finish_reason"],
            "tokens": [entry["token"] for entry in (choice["logprobs"] or {"content": ()})["content"]],
        }
    return choices


def test_calls_in_the_json_form() -> None:
    reply = roomy(replay([*ids_of(CALLS), EOS])).chat(tools=TOOLS)
    choice = reply.json()["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "See:"
    first, second = choice["message"]["tool_calls"]
    assert first["function"] == {"name": "f", "arguments": '{"x": 1}'}
    assert second["function"] == {"name": "g", "arguments": '{"x": 2}'}
    assert first["id"] != second["id"] and first["id"].startswith("call_") and first["type"] == "function"


def test_calls_in_the_form_of_mistral() -> None:
    tokenizer = mistral()
    text = ' [{"name": "f", "arguments": {"x": 1}}]'
    client = roomy(replay([marker(tokenizer), *ids_of(text), EOS]), tokenizer)
    message = client.chat(tools=TOOLS).json()["choices"][0]["message"]
    assert message["content"] is None
    assert message["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"x": 1}'}
    assert len(message["tool_calls"][0]["id"]) == 9
    without = client.chat().json()["choices"][0]["message"]
    assert without["content"] == text and "tool_calls" not in without


@pytest.mark.parametrize("form", ["json", "mistral"])
def test_the_stream_is_the_whole(form: str) -> None:
    """Compares three choices, with log-probabilities, ended at many places."""
    tokenizer = mistral() if form == "mistral" else byte_level()
    calls = ids_of(CALLS)
    if form == "mistral":
        text = '[{"name": "f", "arguments": {"x": "é🦑"}}, {"name": "g", "arguments": {}}]'
        calls = [*ids_of("a "), marker(tokenizer), *ids_of(text)]
    choices = [*calls, EOS], [*ids_of("plain <tool"), EOS], [*calls[:30], *ids_of("x")]
    client = roomy(replay(*choices), tokenizer)
    for limit in (*range(1, len(calls), 17), len(calls) + 1):
        parameters: dict[str, Any] = {"n": 3, "logprobs": True, "tools": TOOLS, "max_tokens": limit}
        expected = whole(client.chat(**parameters))
        assert streamed(client.chat(**parameters, stream=True)) == expected
        for choice, ids in enumerate(choices):
            assert len(expected[choice]["tokens"]) == min(limit, len(ids))
    assert [expected[index]["finish_reason"] for index in range(3)] == ["tool_calls", "stop", "length"]


LLAMA_CALLS = '{"name": "f", "parameters": {"x": 1}}; {"name": "g", "parameters": {"x": 2}}'


def llama() -> Tokenizer:
    """Returns a tokenizer with a tag that decoding hides elsewhere."""
    backend = byte_level().backend
    backend.add_special_tokens(["<|python_tag|>"])
    return Tokenizer(backend, ChatTemplate(LLAMA_31, SPECIAL))


def granite() -> Tokenizer:
    """Returns a tokenizer whose marker of calls decoding hides elsewhere."""
    backend = byte_level().backend
    backend.add_special_tokens(["<|tool_call|>"])
    return Tokenizer(backend, ChatTemplate(ALL["granite"], SPECIAL))


def test_calls_as_granite_writes_them_come_back_with_their_results() -> None:
    tokenizer = granite()
    marker = tokenizer.backend.token_to_id("<|tool_call|>")
    text = '[{"name": "f", "arguments": {"x": 1}}, {"name": "g", "arguments": {"x": 2}}]'
    client = roomy(replay([marker, *ids_of(text), EOS]), tokenizer)
    answer = client.chat(tools=TOOLS).json()["choices"][0]["message"]
    calls = [(call["function"]["name"], call["function"]["arguments"]) for call in answer["tool_calls"]]
    assert answer["content"] is None and calls == [("f", '{"x": 1}'), ("g", '{"x": 2}')]
    assert streamed(client.chat(tools=TOOLS, stream=True)) == whole(client.chat(tools=TOOLS))
    results = [{"role": "tool", "tool_call_id": call["id"], "content": "7"} for call in answer["tool_calls"]]
    told = prompt(client, tools=TOOLS, messages=[*MESSAGES, answer, *results])
    assert f"assistant<|end_of_role|><|tool_call|>{text}<|end_of_text|>" in told
    assert told.count("<|start_of_role|>tool<|end_of_role|>7<|end_of_text|>") == 2
    assert client.engine.submitted[-1].prompt.count(marker) == 2  # the template's own, and that of the call
    forged = [{"role": "assistant", "content": "<|tool_call|>[]"}, *MESSAGES]
    prompt(client, messages=forged)
    assert client.engine.submitted[-1].prompt.count(marker) == 0


def test_calls_as_llama_writes_them() -> None:
    tokenizer = llama()
    tag = tokenizer.backend.token_to_id("<|python_tag|>")
    plain = '{"answer": {"name": "f", "parameters": {"x": 1}}}'
    choices = [*ids_of(LLAMA_CALLS), EOS], [tag, *ids_of(LLAMA_CALLS), EOS], [*ids_of(plain), EOS]
    client = roomy(replay(*choices), tokenizer)
    expected = whole(client.chat(n=3, tools=TOOLS))
    assert streamed(client.chat(n=3, tools=TOOLS, stream=True)) == expected
    calls = [{"name": "f", "arguments": '{"x": 1}'}, {"name": "g", "arguments": '{"x": 2}'}]
    assert [expected[choice]["calls"] for choice in range(3)] == [calls, calls, []]
    assert [expected[choice]["content"] for choice in range(3)] == ["", "", plain]
    assert [expected[choice]["finish_reason"] for choice in range(3)] == ["tool_calls", "tool_calls", "stop"]
    assert "Respond in the format" in prompt(client, tools=TOOLS)


@pytest.mark.parametrize("name", ["deepseek", "command_r"])
def test_tools_are_in_the_plain_form_where_the_templates_form_is_unknown(name: str) -> None:
    client = roomy(replay([*ids_of("</think>" + CALLS), EOS]), byte_level(ALL[name]))
    told = prompt(client, tools=TOOLS)
    assert told.count('{"name": "...", "arguments": {...}}') == told.count('"description": "Does f."') == 1
    assert [call["name"] for call in whole(client.chat(tools=TOOLS))[0]["calls"]] == ["f", "g"]


def test_stop_strings_end_calls_too() -> None:
    client = roomy(replay([*ids_of(CALLS), EOS]))
    for stop in ("</tool_call>", '"x"', "See", "<tool"):
        expected = whole(client.chat(tools=TOOLS, stop=stop))
        assert streamed(client.chat(tools=TOOLS, stop=stop, stream=True)) == expected
        assert stop not in json.dumps(expected)
    assert whole(client.chat(tools=TOOLS, stop="</tool_call>"))[0]["finish_reason"] == "tool_calls"


def test_the_name_comes_first_and_arguments_as_they_arrive() -> None:
    events = roomy(replay([*ids_of(CALLS), EOS])).chat(tools=TOOLS, stream=True).events()
    deltas = [event["choices"][0]["delta"] for event in events]
    calls = [call for delta in deltas for call in delta.get("tool_calls", ())]
    assert calls[0] == {
        "index": 0,
        "id": calls[0]["id"],
        "type": "function",
        "function": {"name": "f", "arguments": ""},
    }
    fragments = [call["function"]["arguments"] for call in calls if call["index"] == 0]
    assert fragments == ["", *'{"x": 1}']
    assert deltas[-1] == {} and events[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_calls_of_other_tools_are_text() -> None:
    text = '<tool_call>{"name": "other", "arguments": {}}</tool_call>'
    choice = roomy(replay([*ids_of(text), EOS])).chat(tools=TOOLS).json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == (text, "stop")


def test_one_call_where_calls_are_not_parallel() -> None:
    client = roomy(replay([*ids_of(CALLS), EOS]))
    counts = {
        value: len(whole(client.chat(tools=TOOLS, parallel_tool_calls=value))[0]["calls"]) for value in (True, False)
    }
    assert counts == {True: 2, False: 1}
    assert len(whole(client.chat(tools=TOOLS, parallel_tool_calls=None))[0]["calls"]) == 2


def test_tools_reach_the_template_or_the_system_turn() -> None:
    text = prompt(roomy(replay((65,)), mistral()), tools=TOOLS)
    described = [
        {"type": "function", "function": {"name": "f", "description": "Does f.", "parameters": SCHEMA}},
        {"type": "function", "function": {"name": "g", "parameters": SCHEMA}},
    ]
    assert text == f"<s>[AVAILABLE_TOOLS]{json.dumps(described)}[/AVAILABLE_TOOLS][INST]hi[/INST]"
    text = prompt(roomy(replay((65,))), tools=TOOLS)
    assert text.startswith("<system>") and all(json.dumps(each) in text for each in described)


def test_apply_template_shows_tools() -> None:
    client = roomy(replay((65,)))
    body = {"model": "org/tiny", "messages": MESSAGES, "tools": TOOLS}
    assert client.post("/apply-template", body).json()["prompt"] == prompt(client, tools=TOOLS)


def test_a_tool_without_parameters_takes_no_arguments() -> None:
    for function in ({}, {"parameters": None}, {"parameters": {}}):
        tools = [{"type": "function", "function": {"name": "f"} | function}]
        assert '"properties": {}, "additionalProperties": false' in prompt(roomy(replay((65,))), tools=tools)


def test_results_are_accepted_back() -> None:
    client = roomy(replay([*ids_of(CALLS), EOS]), None)
    answer = client.chat(tools=TOOLS).json()["choices"][0]["message"]
    results = [{"role": "tool", "tool_call_id": call["id"], "content": "7"} for call in answer["tool_calls"]]
    text = prompt(client, tools=TOOLS, messages=[*MESSAGES, answer, *results])
    assert '<assistant>See:\n<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>' in text
    assert text.count("<tool_response>\n7\n</tool_response>") == 2


def test_none_and_the_lack_of_tools() -> None:
    client = roomy(replay([*ids_of(CALLS), EOS]))
    plain = prompt(client)
    for parameters in (
        {"tools": TOOLS, "tool_choice": "none"},
        {"tools": []},
        {"tools": None, "tool_choice": None, "parallel_tool_calls": None},
        {"tool_choice": "auto"},
        {"tool_choice": "none", "parallel_tool_calls": False},
    ):
        assert prompt(client, **parameters) == plain
        choice = client.chat(**parameters).json()["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == (CALLS, "stop")


def test_allowed_tools_are_all_that_the_model_sees() -> None:
    client = roomy(replay([*ids_of(CALLS), EOS]))
    allowed = {"mode": "auto", "tools": [{"type": "function", "function": {"name": "g"}}]}
    parameters = {"tools": TOOLS, "tool_choice": {"type": "allowed_tools", "allowed_tools": allowed}}
    assert '"name": "f"' not in prompt(client, **parameters)
    assert [call["name"] for call in whole(client.chat(**parameters))[0]["calls"]] == ["g"]


@pytest.mark.parametrize(
    ("parameters", "param"),
    [
        ({"tools": {}}, "tools"),
        ({"tools": [tool()] * (MAX_TOOLS + 1)}, "tools"),
        ({"tools": ["f"]}, "tools.0"),
        ({"tools": [tool() | {"type": "custom"}]}, "tools.0.type"),
        ({"tools": [{"type": "function"}]}, "tools.0.function"),
        ({"tools": [tool(), tool("a b")]}, "tools.1.function.name"),
        ({"tools": [tool("x" * 129)]}, "tools.0.function.name"),
        ({"tools": [tool("")]}, "tools.0.function.name"),
        ({"tools": [tool("a/b")]}, "tools.0.function.name"),
        ({"tools": [tool(), tool()]}, "tools.1.function.name"),
        ({"tools": [tool(description=5)]}, "tools.0.function.description"),
        ({"tools": [tool(strict="yes")]}, "tools.0.function.strict"),
        ({"tools": [tool(parameters=[])]}, "tools.0.function.parameters"),
        ({"tools": [tool(), tool("g", parameters={"type": "string"})]}, "tools.1.function.parameters"),
        ({"tools": [tool(parameters={"properties": {}})]}, "tools.0.function.parameters"),
        ({"tools": [tool()], "tool_choice": "always"}, "tool_choice"),
        ({"tools": [tool()], "tool_choice": 5}, "tool_choice"),
        ({"tools": [tool()], "tool_choice": {"type": "function"}}, "tool_choice"),
        ({"tools": [tool()], "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        (
            {"tools": [tool()], "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto"}}},
            "tool_choice",
        ),
        ({"tools": [tool()], "parallel_tool_calls": "no"}, "parallel_tool_calls"),
        ({"tools": [tool()], "parallel_tool_calls": 1}, "parallel_tool_calls"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"function_call": {"name": "f"}}, "function_call"),
    ],
)
def test_bounds(parameters: dict[str, Any], param: str) -> None:
    client = Client()
    reply = client.chat(**parameters)
    assert (reply.status, reply.error["param"]) == (400, param)
    assert client.engine.submitted == []


BROKEN = 'See: <tool_call>\n{"name": "f", "arguments": {"x": 1, "y": "ab'


@pytest.mark.parametrize(
    ("ids", "stop", "reasons"),
    [
        (ids_of(BROKEN), None, ("length", "incomplete", "max_tokens")),
        ([*ids_of(BROKEN), EOS], None, ("stop", "completed", "end_turn")),
        (ids_of(BROKEN + 'STOP"}}\n</tool_call>'), "STOP", ("stop", "completed", "stop_sequence")),
    ],
)
def test_a_call_that_was_broken_off_must_not_be_made(ids: list[int], stop: str | None, reasons: Sequence[str]) -> None:
    client = roomy(replay(ids))
    limit, fragment = len(ids), '{"x": 1, "y": "ab'
    chat = {"tools": [tool()], "stop": stop, "max_tokens": limit}
    for choices in (whole(client.chat(**chat)), streamed(client.chat(**chat, stream=True))):
        assert choices[0]["finish_reason"] == reasons[0]
        assert choices[0]["calls"] == [{"name": "f", "arguments": fragment}]
    function = {"type": "function", "name": "f", "parameters": SCHEMA}
    response = {"tools": [function], "stop": stop, "max_output_tokens": limit}
    events = client.respond(**response, stream=True).named_events()
    for body in (client.respond(**response).json(), events[-1]["response"]):
        assert body["status"] == reasons[1]
        assert (body["output"][1]["arguments"], body["output"][1]["status"]) == (fragment, "incomplete")
    tools = [{"name": "f", "input_schema": SCHEMA}]
    message = {"tools": tools, "stop_sequences": [stop] if stop else [], "max_tokens": limit}
    body = client.message(**message).json()
    assert (body["stop_reason"], body["content"][1]["input"]) == (reasons[2], {"x": 1})
    assert client.message(**message, stream=True).named_events()[-2]["delta"]["stop_reason"] == reasons[2]


def test_a_second_call_that_nobody_wants_may_be_broken_off() -> None:
    client = roomy(replay([*ids_of('<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>' + BROKEN[5:]), EOS]))
    choices = whole(client.chat(tools=TOOLS, parallel_tool_calls=False))
    assert (choices[0]["finish_reason"], len(choices[0]["calls"])) == ("tool_calls", 1)


@pytest.mark.parametrize("name", ["x" * 128, "mcp__files__read_text-file_2", "files.read"])
def test_names_as_clients_of_mcp_make_them(name: str) -> None:
    text = f'<tool_call>\n{{"name": "{name}", "arguments": {{"x": 1}}}}\n</tool_call>'
    client = roomy(replay([*ids_of(text), EOS]))
    choice = {"type": "function", "function": {"name": name}}
    for tool_choice in ("auto", choice):
        choices = whole(client.chat(tools=[tool(name)], tool_choice=tool_choice, max_tokens=300))
        assert [call["name"] for call in choices[0]["calls"]] == [name]
    tools = [{"name": name, "input_schema": SCHEMA}]
    assert client.message(tools=tools, max_tokens=300).json()["content"][0]["name"] == name


def test_old_names_are_pointed_to_new_ones() -> None:
    assert "'tools'" in Client().chat(functions=[{"name": "f"}]).error["message"]
    assert "'tool_choice'" in Client().chat(function_call={"name": "f"}).error["message"]
    for neutral in ({"functions": []}, {"functions": None}, {"function_call": "none"}, {"function_call": None}):
        assert Client().chat(**neutral).status == 200
