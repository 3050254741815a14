"""Tests that a grammar binds the answer and not the reasoning before it, for tags and for harmony."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest

from octavo.engine.api import Grammar
from octavo.engine.compute.compiler import Compiler
from octavo.server.text.harmony import MARKERS
from octavo.server.text.tokenizer import Tokenizer
from tests.server.client import Client
from tests.server.conversation.test_tools import roomy, tool
from tests.server.fake import replay
from tests.server.text.real_templates import ALL
from tests.server.text.test_reasoning_tags import CLOSES, OPENS
from tests.server.vocab import EOS, byte_level

TAGS = ("<think>", "</think>")
JSON = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object", "required": ["x"]}}}
BOUND: dict[str, dict[str, Any]] = {
    '{"x": 1}': {"response_format": JSON},
    "a7": {"structured_outputs": {"regex": "a[0-9]"}},
    "yes": {"structured_outputs": {"choice": ["yes", "no"]}},
    "b!": {"structured_outputs": {"grammar": 'root ::= "b" end\nend ::= "!"'}},
    "c!": {"structured_outputs": {"grammar": 'start: "c" END\nEND: "!"'}},
}
FINAL = "<|channel|>final<|message|>"
THOUGHT = "<|channel|>analysis<|message|>So {.<|end|><|start|>assistant"
CALL = '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"x": 1}'


@cache
def tokenizer_of(source: str, *added: str) -> Tokenizer:
    backend = byte_level().backend
    backend.add_special_tokens(list(added))
    return byte_level(source) if not added else Tokenizer(backend, byte_level(source).template)


def client_of(source: str, *added: str, answer: str = "x") -> Client:
    tokenizer = tokenizer_of(source, *added)
    return roomy(replay([*tokenizer.encode(answer, add_special_tokens=False), EOS]), tokenizer)


def takes(client: Client, path: Path, text: str, **parameters: Any) -> bool:
    """Returns whether the engine would let a model answer so."""
    reply = client.chat(**parameters)
    assert reply.status == 200, reply.error
    grammar = client.engine.submitted[-1].params.grammar
    assert isinstance(grammar, Grammar)
    file = path / "tokenizer.json"
    client.tokenizer.backend.save(str(file))
    matcher = Compiler(file, (EOS,)).compile(grammar).deep_copy()
    ids = client.tokenizer.encode(text, add_special_tokens=False)
    return bool(matcher.try_consume_tokens(list(ids)) == len(ids) and matcher.is_accepting())


@pytest.mark.parametrize("answer", BOUND)
@pytest.mark.parametrize("added", [TAGS, ()], ids=["tokens", "text"])
def test_a_grammar_binds_what_follows_the_tags(tmp_path: Path, answer: str, added: tuple[str, ...]) -> None:
    asked = BOUND[answer]
    opened, free = client_of(OPENS, *added), client_of(CLOSES, *added)
    for client in (opened, free):
        begin = "" if client is opened else "<think>"
        assert takes(client, tmp_path, f"{begin}\nSo {{ no \n</think>\n\n{answer}", **asked)
        assert takes(client, tmp_path, f"{begin}</think>{answer}", **asked)
        assert not takes(client, tmp_path, f"{begin}So</think>\n\nx{answer}", **asked)
        assert not takes(client, tmp_path, f"{begin}So", **asked)
    assert takes(free, tmp_path, answer, **asked)
    assert not takes(opened, tmp_path, answer, **asked)


def test_calls_are_demanded_after_reasoning(tmp_path: Path) -> None:
    client = client_of(OPENS, *TAGS)
    call = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'
    asked = {"tools": [tool("f")], "tool_choice": "required"}
    assert takes(client, tmp_path, f"So</think>\n\n{call}", **asked)
    assert not takes(client, tmp_path, call, **asked)
    assert not takes(client, tmp_path, "So</think>\n\nNo.", **asked)


@pytest.mark.parametrize("answer", BOUND)
def test_a_grammar_binds_harmony_s_final_message(tmp_path: Path, answer: str) -> None:
    client = client_of(ALL["gpt-oss"], *MARKERS)
    assert takes(client, tmp_path, FINAL + answer, **BOUND[answer])
    assert takes(client, tmp_path, THOUGHT + THOUGHT + FINAL + answer, **BOUND[answer])
    for wrong in (answer, FINAL + "x" + answer, THOUGHT + answer, THOUGHT, THOUGHT + FINAL.replace("final", "other")):
        assert not takes(client, tmp_path, wrong, **BOUND[answer])


def test_calls_are_demanded_in_harmony(tmp_path: Path) -> None:
    client = client_of(ALL["gpt-oss"], *MARKERS)
    asked: dict[str, Any] = {"tools": [tool("f"), tool("g")], "tool_choice": "required"}
    for right in (CALL, THOUGHT + CALL, CALL.replace("functions.f", "functions.g")):
        assert takes(client, tmp_path, right, **asked)
    for wrong in ("", THOUGHT, FINAL + "x", CALL.replace("functions.f", "functions.h"), CALL.replace("1", '"1"')):
        assert not takes(client, tmp_path, wrong, **asked)
    either = {"tools": [tool("f")], "response_format": JSON}
    for right in (THOUGHT + CALL, THOUGHT + FINAL + '{"x": 1}'):
        assert takes(client, tmp_path, right, **either)
    assert not takes(client, tmp_path, THOUGHT + FINAL + "x", **either)


def test_an_answer_whose_header_is_in_the_prompt(tmp_path: Path) -> None:
    client = client_of(ALL["gpt-oss"], *MARKERS)
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    asked = {"messages": messages, "continue_final_message": True, "structured_outputs": {"choice": ["yes"]}}
    assert takes(client, tmp_path, "yes", **asked)
    assert not takes(client, tmp_path, FINAL + "yes", **asked)


def test_bound_answers_in_harmony_are_read() -> None:
    asked: dict[str, Any] = {"tools": [tool("f")], "tool_choice": "required"}
    choice = client_of(ALL["gpt-oss"], *MARKERS, answer=THOUGHT + CALL).chat(**asked).json()["choices"][0]
    (call,) = choice["message"]["tool_calls"]
    assert (call["function"], choice["finish_reason"]) == ({"name": "f", "arguments": '{"x": 1}'}, "tool_calls")
    assert (choice["message"]["reasoning_content"], choice["message"]["content"]) == ("So {.", None)


def test_harmony_s_last_markers_end_the_answer() -> None:
    for last in ("<|call|>", "<|return|>"):
        client = client_of(ALL["gpt-oss"], *MARKERS, answer=THOUGHT + CALL + last + THOUGHT)
        choice = client.chat(tools=[tool("f")]).json()["choices"][0]
        assert choice["finish_reason"] == "tool_calls" and choice["message"]["reasoning_content"] == "So {."
        assert client.chat(ignore_eos=True).json()["choices"][0]["message"]["reasoning_content"].count("So") == 2


@pytest.mark.parametrize("effort", [("minimal", "low"), ("none", "low"), ("medium", "medium"), ("xhigh", "high")])
def test_harmony_knows_three_degrees_of_effort(effort: tuple[str, str]) -> None:
    client = client_of(ALL["gpt-oss"], *MARKERS)
    assert client.chat(reasoning_effort=effort[0]).status == 200
    prompt = client.tokenizer.backend.decode(list(client.engine.submitted[-1].prompt), skip_special_tokens=False)
    assert f"Reasoning: {effort[1]}\n" in prompt


def test_an_answer_without_tools_is_read_in_harmony_too() -> None:
    for answer, reasoning, text in ((THOUGHT + FINAL + "Two.", "So {.", "Two."), ("Two.", None, "Two.")):
        message = client_of(ALL["gpt-oss"], *MARKERS, answer=answer).chat().json()["choices"][0]["message"]
        assert (message.get("reasoning_content"), message["content"]) == (reasoning, text)
