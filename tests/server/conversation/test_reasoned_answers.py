"""Tests reasoning in each API: how clients get it, streamed and whole, send it back, and ask for it."""

import json
from typing import Any

import pytest

from tests.server.anthropic.test_messages import joined
from tests.server.client import Client, Reply
from tests.server.conversation.test_tools import CALLS, TOOLS, roomy
from tests.server.fake import replay
from tests.server.openai.test_responses import last_response, same
from tests.server.text.test_reasoning_tags import OPENS
from tests.server.vocab import EOS, byte_level, ids_of

SHOWS = (
    "{% if enable_thinking is defined and thinking == enable_thinking %}[{{ enable_thinking }}]{% endif %}"
    "{{ reasoning_effort }}{% for m in messages %}<{{ m.role }}>"
    "{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}{{ m.content }}"
    '{% for c in m.tool_calls or [] %}<tool_call>{"name": "{{ c.function.name }}", '
    '"arguments": {{ c.function.arguments | tojson }}}</tool_call>{% endfor %}</s>{% endfor %}<assistant>'
)
THOUGHT = "\nSo, 1 + 1.\n</think>\n\n"
TOKENS = len(THOUGHT.encode()) - 2  # those up to the last tag, each of one byte
CALLING = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "7"}


def thinking(text: str = THOUGHT + "Two.", source: str = OPENS) -> Client:
    return roomy(replay([*ids_of(text), EOS]), byte_level(source))


def prompt_of(client: Client, reply: Reply) -> str:
    assert reply.status == 200, reply.error
    return client.tokenizer.backend.decode(list(client.engine.submitted[-1].prompt), skip_special_tokens=False)


def test_chat() -> None:
    body = thinking().chat().json()
    message = body["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("So, 1 + 1.", "Two.")
    assert body["usage"]["completion_tokens_details"] == {"reasoning_tokens": TOKENS}
    assert "reasoning_content" not in thinking("</think>Two.").chat().json()["choices"][0]["message"]


def test_chat_streamed() -> None:
    options = {"include_usage": True}
    *events, last = thinking().chat(stream=True, stream_options=options).events()
    deltas = [event["choices"][0]["delta"] for event in events]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "So, 1 + 1."
    assert "".join(delta.get("content", "") for delta in deltas) == "Two."
    kinds = [next(iter(delta)) for delta in deltas if delta and "role" not in delta]
    assert kinds == sorted(kinds, reverse=True), "reasoning comes first"
    assert last["usage"]["completion_tokens_details"] == {"reasoning_tokens": TOKENS}


def test_usage_in_every_chunk_counts_reasoning_as_it_comes() -> None:
    options = {"continuous_usage_stats": True}
    events = thinking().chat(stream=True, stream_options=options).events()
    counts = [event["usage"]["completion_tokens_details"]["reasoning_tokens"] for event in events]
    assert counts[0] == 0 and counts == sorted(counts) and counts[-1] == TOKENS and len(set(counts)) > 3


def test_log_probabilities_are_those_of_the_answer() -> None:
    for stream in (False, True):
        reply = thinking().chat(logprobs=True, stream=stream)
        choices = [event["choices"][0] for event in (reply.events() if stream else [reply.json()])]
        tokens = [entry["token"] for choice in choices for entry in (choice["logprobs"] or {"content": []})["content"]]
        assert "".join(tokens).removesuffix("</s>").strip() == "Two."
    included = thinking().respond(include=["message.output_text.logprobs"]).json()
    (told,) = [item["content"][0]["logprobs"] for item in included["output"] if item["type"] == "message"]
    assert "".join(entry["token"] for entry in told).removesuffix("</s>").strip() == "Two."


def test_calls_after_reasoning() -> None:
    client = thinking(THOUGHT + CALLS)
    choice = client.chat(tools=TOOLS).json()["choices"][0]
    assert choice["message"]["reasoning_content"] == "So, 1 + 1." and choice["finish_reason"] == "tool_calls"
    types = [item["type"] for item in client.respond(tools=[{"type": "function", "name": "f"}]).json()["output"]]
    assert types[:2] == ["reasoning", "message"] and "function_call" in types


def test_responses() -> None:
    whole = thinking().respond().json()
    thought, message = whole["output"]
    assert thought == {
        "type": "reasoning",
        "id": thought["id"],
        "summary": [],
        "content": [{"type": "reasoning_text", "text": "So, 1 + 1."}],
        "status": "completed",
    }
    assert message["content"][0]["text"] == "Two."
    assert whole["usage"]["output_tokens_details"] == {"reasoning_tokens": TOKENS}
    assert same(last_response(thinking().respond(stream=True))) == same(whole)


def test_responses_cut_within_reasoning() -> None:
    body = thinking().respond(max_output_tokens=4).json()
    assert [(item["type"], item["status"]) for item in body["output"]] == [("reasoning", "incomplete")]
    assert body["usage"]["output_tokens_details"]["reasoning_tokens"] == 4


def test_messages() -> None:
    whole = thinking().message().json()
    assert whole["content"] == [
        {"type": "thinking", "thinking": "So, 1 + 1.", "signature": whole["content"][0]["signature"]},
        {"type": "text", "text": "Two."},
    ]
    assert whole["content"][0]["signature"]
    assert whole["usage"]["output_tokens_details"] == {"thinking_tokens": TOKENS}
    streamed = thinking().message(stream=True)
    assert joined(streamed)["content"] == whole["content"]
    types = [event.get("delta", {}).get("type", event["type"]) for event in streamed.named_events()]
    stop = types.index("content_block_stop")
    assert types[stop - 1] == "signature_delta" and set(types[3 : stop - 1]) == {"thinking_delta"}


HISTORY = "<user>a</s><assistant><think>\nSo.\n</think>\n\nb</s><user>c</s><assistant>"
CALLED = (
    '<user>a</s><assistant><think>\nSo.\n</think>\n\n<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call></s>'
    "<tool>7</s><assistant>"
)


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_chats_send_reasoning_back(name: str) -> None:
    client = thinking("b", SHOWS)
    user = {"role": "user", "content": "a"}
    said = {"role": "assistant", "content": "b", name: "So."}
    assert prompt_of(client, client.chat(messages=[user, said, {"role": "user", "content": "c"}])) == HISTORY
    calling = {"role": "assistant", "content": None, name: "So.", "tool_calls": [CALLING]}
    assert prompt_of(client, client.chat(messages=[user, calling, RESULT])) == CALLED
    refused = client.chat(messages=[user | {name: "So."}])
    assert (refused.status, refused.error["param"]) == (400, f"messages.0.{name}")
    assert client.chat(messages=[user | {name: None}]).status == 200


@pytest.mark.parametrize(
    "thought",
    [
        {"summary": [], "content": [{"type": "reasoning_text", "text": "So."}]},
        {"summary": [{"type": "summary_text", "text": "So."}], "content": None, "encrypted_content": "x"},
        {"summary": [{"type": "summary_text", "text": "no"}], "content": [{"type": "reasoning_text", "text": "So."}]},
    ],
)
def test_responses_send_reasoning_back(thought: dict[str, Any]) -> None:
    client = thinking("b", SHOWS)
    item = {"type": "reasoning", "id": "rs_1", **thought}
    said = [item, {"role": "assistant", "content": "b"}]
    user = {"role": "user", "content": "a"}
    assert prompt_of(client, client.respond(input=[user, *said, {"role": "user", "content": "c"}])) == HISTORY
    call = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"x": 1}'}
    result = {"type": "function_call_output", "call_id": "c1", "output": "7"}
    assert prompt_of(client, client.respond(input=[user, item, call, result])) == CALLED


@pytest.mark.parametrize("strange", [{}, {"summary": 3, "content": "x"}, {"content": [7, {"text": 7}]}])
def test_reasoning_that_cannot_be_read_is_passed_over(strange: dict[str, Any]) -> None:
    client = thinking("b", SHOWS)
    items = [{"role": "user", "content": "a"}, {"type": "reasoning", **strange}, {"role": "assistant", "content": "b"}]
    assert prompt_of(client, client.respond(input=items)) == "<user>a</s><assistant>b</s><assistant>"


def test_messages_send_thinking_back() -> None:
    client = thinking("b", SHOWS)
    thought = {"type": "thinking", "thinking": "So.", "signature": "s"}
    redacted = {"type": "redacted_thinking", "data": "x"}
    user = {"role": "user", "content": "a"}
    said = {"role": "assistant", "content": [thought, redacted, {"type": "text", "text": "b"}]}
    assert prompt_of(client, client.message(messages=[user, said, {"role": "user", "content": "c"}])) == HISTORY
    use = {"type": "tool_use", "id": "c1", "name": "f", "input": {"x": 1}}
    result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "7"}]}
    calling = {"role": "assistant", "content": [thought, use]}
    assert prompt_of(client, client.message(messages=[user, calling, result])) == CALLED


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ({}, ""),
        ({"reasoning_effort": "high"}, "[True]high"),
        ({"reasoning_effort": "none"}, "[False]none"),
        ({"thinking": {"type": "disabled"}}, "[False]"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}, "reasoning_effort": "low"}, "[True]low"),
        ({"thinking": {"type": "adaptive"}}, ""),
        ({"thinking": {"type": "disabled"}, "reasoning_effort": "low"}, "[False]low"),
        ({"chat_template_kwargs": {"enable_thinking": False, "thinking": False}}, "[False]"),
        ({"chat_template_kwargs": {"reasoning_effort": "mine"}, "reasoning_effort": "low"}, "[True]mine"),
    ],
)
def test_templates_are_told_what_chats_ask_for(parameters: dict[str, Any], told: str) -> None:
    client = thinking("b", SHOWS)
    assert prompt_of(client, client.chat(**parameters)) == told + "<user>hi</s><assistant>"


def test_templates_are_told_what_other_apis_ask_for() -> None:
    client = thinking("b", SHOWS)
    assert prompt_of(client, client.respond(reasoning={"effort": "low"})).startswith("[True]low<")
    assert prompt_of(client, client.message(thinking={"type": "disabled"})).startswith("[False]<")
    enabled = {"type": "enabled", "budget_tokens": 1024}
    assert prompt_of(client, client.message(thinking=enabled)).startswith("[True]<")
    assert prompt_of(client, client.message(output_config={"effort": "max"})).startswith("[True]max<")


def test_a_beginning_of_the_answer_within_reasoning_goes_on_there() -> None:
    client = thinking(" it is.</think>Two.", SHOWS)
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "<think>\nSo"}]
    message = client.chat(messages=messages, continue_final_message=True).json()["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("it is.", "Two.")


def test_special_tags_are_found_though_decoding_hides_them() -> None:
    tokenizer = byte_level(OPENS)
    tokenizer.backend.add_special_tokens(["<think>", "</think>"])
    client = roomy(
        replay([*ids_of("So."), int(tokenizer.backend.token_to_id("</think>") or 0), *ids_of("Two."), EOS]),
        type(tokenizer)(tokenizer.backend, tokenizer.template),
    )
    message = client.chat().json()["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("So.", "Two.")


def test_stop_strings_end_reasoning_too() -> None:
    body = thinking().chat(stop=["1 + 1"]).json()
    assert body["choices"][0]["message"]["reasoning_content"] == "So,"
    assert json.dumps(body).count("Two") == 0
