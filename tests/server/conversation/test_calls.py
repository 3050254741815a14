"""Tests that calls are found in a model's text, cut anywhere; what is malformed stays text, and nothing raises."""

import json
import re
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.server.conversation.calls import CallParser, format_of, new_id
from octavo.server.conversation.harmony import HarmonyParser
from octavo.server.conversation.parts import ParsedDelta, Part, Text, ToolCall, ToolCallArguments, ToolCallStart
from octavo.server.text.call_formats import GRANITE, HARMONY, JSON, LLAMA, MISTRAL, MISTRAL_NAMED, TAGGED, CallFormat
from octavo.server.text.template import ChatTemplate, Rendering
from tests.server.text.real_templates import ALL
from tests.server.text.test_template import CHATML, MISTRAL_TOOLS, SPECIAL

FORMATS = {"json": JSON, "llama": LLAMA, "mistral": MISTRAL, "tagged": TAGGED}
TOOLS: dict[str, Any] = {"f": {"properties": {"x": {"type": "string"}, "y": {"type": "array"}}}, "g": {}}
ALPHABET = [
    *("<|python_tag|>", '{"name": "g", "parameters": {', '{"type": "function", ', ";", '[{"name": "f"'),
    *("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", '{"name": "f", "arguments": {', "<tool"),
    *('{"name": "g", "arguments": {}}', '"arguments": "{}"', '"name": "f"', "f[ARGS]{", "[TOOL", '"', "\\"),
    *("<function=f>", "<function=", "<parameter=x>", "<parameter=y>", "</parameter>", "</function>", "<parameter="),
    *("{", "}", "[", "]", ",", ":", " ", "\n", "x", "é", "f", "null", '{"a": [1, "}"]}', "[{", "}]"),
]
texts = st.lists(st.sampled_from(ALPHABET), max_size=25).map("".join) | st.text(max_size=40)


def parts_of(format: CallFormat, cut: Sequence[str], parallel: bool = True) -> list[Part]:
    parser = CallParser(format, TOOLS, lambda: "id", parallel)
    parts = [part for text in cut for part in parser.push(text)]
    return parts + parser.flush()


def whole(format: CallFormat, text: str, parallel: bool = True) -> tuple[str, list[tuple[str, str]]]:
    """Returns text and calls, and checks that they are the same however the text is cut."""
    cuts = [[text], list(text), re.findall(r"(?s).{1,3}", text)]
    cuts += [[text[:position], text[position:]] for position in range(len(text))]
    answers = [ParsedDelta(0, tuple(parts_of(format, cut, parallel))) for cut in cuts]
    seen = [(answer.text, [(call.name, call.arguments) for call in answer.tool_calls]) for answer in answers]
    assert all(each == seen[0] for each in seen), text
    return seen[0]


@pytest.mark.parametrize(
    ("format", "text", "content", "calls"),
    [
        (JSON, "Hello.\n", "Hello.\n", []),
        (JSON, '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>', "", [("f", '{"x": 1}')]),
        (JSON, 'So:\n\n<tool_call>{"name":"f","arguments":{}}</tool_call>\n', "So:", [("f", "{}")]),
        (JSON, '<tool_call>{"name": "f", "parameters": {"x": "}"}}</tool_call>', "", [("f", '{"x": "}"}')]),
        (
            JSON,
            '<tool_call>\n{"name": "f", "arguments": {"x": "</tool_call>\\""}}\n</tool_call>\n'
            '<tool_call>\n{"name": "g", "arguments": {"é": [{}]}}\n</tool_call>',
            "",
            [("f", '{"x": "</tool_call>\\""}'), ("g", '{"é": [{}]}')],
        ),
        (JSON, '<tool_call>{"arguments": {"x": 1}, "name": "f"}</tool_call>', "", [("f", '{"x": 1}')]),
        (JSON, '<tool_call>{"name": "f", "arguments": "{\\"x\\": 1}"}</tool_call>', "", [("f", '{"x": 1}')]),
        (JSON, '<tool_call>{"name": "f"}</tool_call> then', " then", [("f", "{}")]),
        (JSON, '<tool_call>{"name": "f", "arguments": {}', "", [("f", "{}")]),
        (JSON, '<tool_call>{"name": "f", "arguments": {"x": [1', "", [("f", '{"x": [1')]),
        (JSON, '<tool_call>{"name": "f", "arguments": {}\n</tool_call> a', " a", [("f", "{}")]),
        (MISTRAL, '[TOOL_CALLS] [{"name": "f", "arguments": {"x": 1}}]', "", [("f", '{"x": 1}')]),
        (
            MISTRAL,
            'a [TOOL_CALLS][{"name": "f", "arguments": {}, "id": "abcdefghi"}, {"name": "g", "arguments": {"y": 2}}]',
            "a",
            [("f", "{}"), ("g", '{"y": 2}')],
        ),
        (MISTRAL, '[TOOL_CALLS]{"name": "f", "arguments": {}}', "", [("f", "{}")]),
        (MISTRAL_NAMED, '[TOOL_CALLS]f[ARGS]{"x": 1}[TOOL_CALLS]g[ARGS]{}', "", [("f", '{"x": 1}'), ("g", "{}")]),
        (MISTRAL_NAMED, '[TOOL_CALLS]f[CALL_ID]a1b2c3d4e[ARGS]{"x": 1}', "", [("f", '{"x": 1}')]),
    ],
)
def test_calls(format: CallFormat, text: str, content: str, calls: list[tuple[str, str]]) -> None:
    assert whole(format, text) == (content, calls)


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>",
        "a <tool_cal",
        "<tool_call>f(1)</tool_call>",
        "<tool_call>{}</tool_call>",
        "<tool_call>[]</tool_call>",
        "<tool_call>{'name': 'f'}</tool_call>",
        '<tool_call>{"name": "unknown", "arguments": {"x": 1}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": [1]}</tool_call>',
        '<tool_call>{"name": "f", "arguments": 1}</tool_call>',
        '<tool_call>{"name": "f", "arguments": "no"}</tool_call>',
        '<tool_call>{"name": ["f"], "arguments": {}}</tool_call>',
        '<tool_call>{"name": "f", "argu',
        "<tool_call>" + "x" * 300,
        "[TOOL_CALLS]h[ARGS]{}",
    ],
)
def test_malformed_calls_are_text(text: str) -> None:
    assert whole(JSON, text) == (text, [])


def test_a_call_after_a_malformed_one() -> None:
    text = 'a <tool_call>{"name": </tool_call> <tool_call>{"name": "f", "arguments": {"x": 2}}</tool_call>'
    assert whole(JSON, '<tool_call>no <tool_call>{"name": "f", "arguments": {"x": 2}}')[1] == [("f", '{"x": 2}')]
    assert whole(JSON, text)[0].startswith("a <tool_call>")


def test_only_the_first_call_where_calls_are_not_parallel() -> None:
    text = '[TOOL_CALLS] [{"name": "f", "arguments": {"x": 1}}, {"name": "g", "arguments": {}}]'
    assert whole(MISTRAL, text, parallel=False) == ("", [("f", '{"x": 1}')])


def test_a_call_is_told_as_it_is_written() -> None:
    parser = CallParser(JSON, {"f": {}}, lambda: "id")
    seen: list[list[Part]] = []
    for piece in (
        "Let me ",
        "see.\n",
        "<tool",
        '_call>\n{"na',
        'me": "f", "arguments": ',
        '{"x"',
        ": 1}",
        "}\n</tool_",
    ):
        seen.append(parser.push(piece))
    assert seen == [
        [Text("Let me")],
        [Text(" see.")],
        [],
        [],
        [],
        [ToolCallStart(0, "id", "f"), ToolCallArguments(0, '{"x"')],
        [ToolCallArguments(0, ": 1}")],
        [],
    ]
    assert parser.flush() == []


@settings(max_examples=150, derandomize=True, deadline=None)
@given(st.sampled_from(sorted(FORMATS)), texts, st.booleans())
def test_any_text_is_read_the_same_however_it_is_cut(name: str, text: str, parallel: bool) -> None:
    content, calls = whole(FORMATS[name], text, parallel)
    if not calls:
        assert content == text


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=20, derandomize=True, deadline=None)
@given(st.lists(st.dictionaries(st.text(max_size=5), values, max_size=3), min_size=1, max_size=3), st.booleans())
def test_arguments_come_through(many: list[dict[str, object]], ascii: bool) -> None:
    written = [json.dumps(arguments, ensure_ascii=ascii) for arguments in many]
    calls = [f'{{"name": "f", "arguments": {each}}}' for each in written]
    expected = ("", [("f", each) for each in written])
    assert whole(JSON, "\n".join(f"<tool_call>\n{call}\n</tool_call>" for call in calls)) == expected
    assert whole(MISTRAL, f"[TOOL_CALLS] [{', '.join(calls)}]") == expected
    assert whole(MISTRAL_NAMED, "".join(f"[TOOL_CALLS]f[ARGS]{each}" for each in written)) == expected


def test_ids() -> None:
    assert re.fullmatch(r"call_[a-zA-Z0-9]{24}", new_id(short=False)())
    assert re.fullmatch(r"[a-zA-Z0-9]{9}", new_id(short=True)())
    assert new_id(short=True)() != new_id(short=True)()
    parts = CallParser(JSON, {"f": {}}, new_id(False)).push('<tool_call>{"name": "f"}<tool_call>{"name": "f"}')
    first, second = ParsedDelta(0, tuple(parts)).tool_calls
    assert isinstance(first, ToolCall) and first.id != second.id


def test_the_format_is_that_in_which_the_template_writes_calls() -> None:
    assert format_of(ChatTemplate(MISTRAL_TOOLS, SPECIAL)) == MISTRAL
    assert format_of(ChatTemplate(CHATML)) == format_of(ChatTemplate("{# [TOOL_CALLS] #}" + CHATML)) == JSON
    assert {name: format_of(ChatTemplate(source, SPECIAL)) for name, source in ALL.items()} == {
        **dict.fromkeys(ALL, JSON),
        "llama_3.1": LLAMA,
        "mistral": MISTRAL,
        **dict.fromkeys(("qwen_3.5", "qwen_3_coder"), TAGGED),
        "granite": GRANITE,
        "gpt-oss": HARMONY,
        **dict.fromkeys(("mistral_small", "ministral"), MISTRAL_NAMED),
    }


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("arguments", [{}, {"x": '}"', "y": [{}]}])
def test_what_a_template_writes_or_describes_is_read(name: str, arguments: dict[str, Any]) -> None:
    template = ChatTemplate(ALL[name], SPECIAL)
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    function: Any = {"name": "f", "arguments": arguments}
    calling: Any = {"role": "assistant", "tool_calls": [{"id": "123456789", "type": "function", "function": function}]}
    messages: Any = [{"role": "user", "content": "a"}, calling | {"content": ""}]
    prompt, told = (template.render(messages[:length], Rendering([tool], False)) for length in (1, 2))
    prompt = prompt.removesuffix("</s>")  # Phi ends a conversation that nobody continues
    assert told.startswith(prompt)
    text, calls = read(format_of(template), told[len(prompt) :], prompt)
    assert calls == [("f", json.dumps(arguments))] and "name" not in text


def read(format: CallFormat, answer: str, prompt: str) -> tuple[str, list[tuple[str, str]]]:
    """Returns the text and the calls of an answer, which gpt-oss writes in channels."""
    if not format.harmony:
        return whole(format, answer)
    parser = HarmonyParser(prompt[prompt.rindex("<|start|>") :], frozenset({"f"}), new_id(short=False))
    parsed = ParsedDelta(0, (*parser.push(answer), *parser.flush()))
    return parsed.text, [(call.name, call.arguments) for call in parsed.tool_calls]


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        ('{"name": "f", "parameters": {"x": 1}}', "", [("f", '{"x": 1}')]),
        ('\n {"name": "f", "arguments": {"x": 1}}\n', "", [("f", '{"x": 1}')]),
        ('<|python_tag|>{"name": "f", "parameters": {"x": 1}}', "", [("f", '{"x": 1}')]),
        ('{"type": "function", "name": "f", "parameters": {"x": 1}}', "", [("f", '{"x": 1}')]),
        ('{"type": "function", "function": {"name": "f", "arguments": "{\\"x\\": 1}"}}', "", [("f", '{"x": 1}')]),
        ('{"parameters": {"x": 1}, "name": "f"}', "", [("f", '{"x": 1}')]),
        ('{"name": "f", "parameters": {}}; {"name": "g", "parameters": {}}', "", [("f", "{}"), ("g", "{}")]),
        ('{"name": "f", "parameters": {}}\n{"name": "g", "parameters": {}}', "", [("f", "{}"), ("g", "{}")]),
        ('[{"name": "f", "parameters": {}}, {"name": "g", "parameters": {}}]', "", [("f", "{}"), ("g", "{}")]),
        ('<|python_tag|>{"name": "f"};<|python_tag|>{"name": "g"}', ";", [("f", "{}"), ("g", "{}")]),
        ('So: {"name": "f", "parameters": {}} then', "So: then", [("f", "{}")]),
        ('{"name": "f", "parameters": {}}; then', "; then", [("f", "{}")]),
        ('{a} {"name": "f", "parameters": {}}', "{a}", [("f", "{}")]),
        ('{"x": 1} {"name": "f", "parameters": {}}', '{"x": 1}', [("f", "{}")]),
        ('<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>', "", [("f", "{}")]),
    ],
)
def test_calls_without_a_marker(text: str, content: str, calls: list[tuple[str, str]]) -> None:
    assert whole(LLAMA, text) == (content, calls)


@pytest.mark.parametrize(
    "text",
    [
        '{"answer": {"name": "f", "parameters": {}}}',
        '[{"x": {"name": "f", "parameters": {}}}, {"name": "f", "parameters": {}}]',
        '{"name": "Ada", "parameters": {"x": 1}}',
        '{"name": "f", "age": 36}',
        '{"name": ["f"], "parameters": {}}',
        '{"type": "object", "name": "f", "parameters": {}}',
        '{"name": "f", "parameters": [1]}',
        '{"name": "f", "parameters": ',
        "A set {1, 2} and { and [ and [ {",
        "{}",
        " [1, 2] ",
        "<|python_tag|>print(1)",
    ],
)
def test_what_names_no_offered_tool_is_text(text: str) -> None:
    assert whole(LLAMA, text) == (text, [])


def test_ordinary_json_is_told_as_it_is_written() -> None:
    parser = CallParser(LLAMA, {"f": {}}, lambda: "id")
    pieces = ('{"ans', 'wer": "', 'x", ', '"name": "f"', "} and", ' {"name": "Ad', 'a"}')
    told = ["".join(part.text for part in parser.push(piece) if isinstance(part, Text)) for piece in pieces]
    assert told == ['{"ans', 'wer": "', 'x", ', '"name": "f"', "} and", ' {"name": "Ad', 'a"}']


@pytest.mark.parametrize("arguments", ["", ', "arguments": null', ', "arguments": ""', ', "arguments": "null"'])
@pytest.mark.parametrize("form", ["<tool_call>{}</tool_call>", "[TOOL_CALLS][{}]", "[TOOL_CALLS]{}", "{}"])
def test_no_arguments_are_an_empty_object(form: str, arguments: str) -> None:
    format = LLAMA if form == "{}" else MISTRAL if form[0] == "[" else JSON
    assert whole(format, form.replace("{}", '{"name": "f"' + arguments + "}")) == ("", [("f", "{}")])


@pytest.mark.parametrize("arguments", ["", "null", '""', " {}"])
def test_a_name_alone_is_a_call_without_arguments(arguments: str) -> None:
    text = f"[TOOL_CALLS]f[ARGS]{arguments}[TOOL_CALLS]g[CALL_ID]123456789[ARGS]{arguments}"
    assert whole(MISTRAL_NAMED, text) == ("", [("f", "{}"), ("g", "{}")])
    assert whole(MISTRAL_NAMED, text, parallel=False) == ("", [("f", "{}")])


def test_the_plain_form_is_read_in_every_format() -> None:
    for format in (MISTRAL, MISTRAL_NAMED, LLAMA):
        assert whole(format, 'a <tool_call>{"name": "f", "arguments": {}}</tool_call> b') == ("a b", [("f", "{}")])
