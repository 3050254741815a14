"""Tests calls whose arguments are written between tags: what their values become, and where they end."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.server.conversation.calls import CallParser
from octavo.server.conversation.parts import ParsedDelta, Part, ToolCallArguments, ToolCallStart
from octavo.server.text.call_formats import TAGGED

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "text": {"type": "string"},
        "count": {"type": "integer"},
        "ratio": {"type": "number"},
        "deep": {"type": "boolean"},
        "many": {"type": "array", "items": {"type": "string"}},
        "place": {"$ref": "#/$defs/place"},
        "maybe": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "either": {"anyOf": [{"type": "integer"}, {"type": "string"}]},
        "two": {"type": ["string", "integer"]},
        "unit": {"enum": ["C", "F", 7]},
        "level": {"enum": [1, 2]},
        "free": {},
    },
    "$defs": {"place": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
FAR_APART = "</parameter>" + " " * 300 + "</function>"
TOOLS: dict[str, Any] = {"f": SCHEMA, "g": {"type": "object", "properties": {}}, "read.file-2": SCHEMA}


def parts_of(*cut: str) -> list[Part]:
    parser = CallParser(TAGGED, TOOLS, lambda: "id")
    return [part for text in cut for part in parser.push(text)] + parser.flush()


def read(text: str) -> tuple[str, list[tuple[str, str]]]:
    """Returns text and calls, and checks that they are the same however the text is cut."""
    cuts = [[text], list(text), *([text[:position], text[position:]] for position in range(len(text)))]
    answers = [ParsedDelta(0, tuple(parts_of(*cut))) for cut in cuts]
    seen = [(answer.text, [(call.name, call.arguments) for call in answer.tool_calls]) for answer in answers]
    assert all(each == seen[0] for each in seen), text
    return seen[0]


def written(name: str = "f", **parameters: str) -> str:
    """Writes a call as Qwen3-Coder's chat template does."""
    inner = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in parameters.items())
    return f"<tool_call>\n<function={name}>\n{inner}</function>\n</tool_call>"


def argument(key: str, value: str) -> Any:
    """Returns what one written value becomes."""
    content, calls = read(written("f", **{key: value}))
    assert content == "" and [name for name, _ in calls] == ["f"]
    return json.loads(calls[0][1])[key]


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("text", "plain", "plain"),
        ("text", "", ""),
        ("text", " two\n\nlines \n", " two\n\nlines \n"),
        ("text", "null", "null"),
        ("text", "5", "5"),
        ("text", '{"x": "\\"1\\""}', '{"x": "\\"1\\""}'),
        ("text", "\"quoted\" 'and' \\back", "\"quoted\" 'and' \\back"),
        ("text", "é🦑\u2028\t", "é🦑\u2028\t"),
        ("count", "5", 5),
        ("count", " -12 ", -12),
        ("count", "12345678901234567890123", 12345678901234567890123),
        ("count", "5.5", "5.5"),
        ("count", "five", "five"),
        ("count", "null", None),
        ("count", "None", None),
        ("count", "NaN", "NaN"),
        ("count", "1e999", "1e999"),
        ("count", "", ""),
        ("ratio", "0.5", 0.5),
        ("ratio", "3", 3),
        ("deep", "true", True),
        ("deep", "False", False),
        ("deep", "1", "1"),
        ("many", '["a", "</b>"]', ["a", "</b>"]),
        ("many", '[\n  "a"\n]', ["a"]),
        ("many", "a, b", "a, b"),
        ("many", "[" * 100_000, "[" * 100_000),
        ("place", '{"city": "Bern"}', {"city": "Bern"}),
        ("place", '{"city": ', '{"city": '),
        ("maybe", "Null", None),
        ("maybe", "nullify", "nullify"),
        ("maybe", "5", "5"),
        ("either", "5", 5),
        ("either", "five", "five"),
        ("either", "null", "null"),
        ("two", "5", "5"),
        ("unit", "C", "C"),
        ("unit", "7", "7"),
        ("level", "2", 2),
        ("free", "5", "5"),
        ("unknown", "{}", "{}"),
        ('odd key"\\é', "x", "x"),
    ],
)
def test_a_value_is_what_the_schema_says(key: str, value: str, expected: Any) -> None:
    if len(value) > 1000:
        calls = ParsedDelta(0, tuple(parts_of(written("f", **{key: value})))).tool_calls
        assert json.loads(calls[0].arguments) == {key: expected}
    else:
        assert argument(key, value) == expected


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        (written(), "", [("f", "{}")]),
        (written("g"), "", [("g", "{}")]),
        (written("read.file-2", count="1"), "", [("read.file-2", '{"count": 1}')]),
        (written(count="1", text="a"), "", [("f", '{"count": 1, "text": "a"}')]),
        (f"So:\n\n{written(text='a')}\n{written('g')} then", "So: then", [("f", '{"text": "a"}'), ("g", "{}")]),
        ("<function=f><parameter=text>a</parameter></function>", "", [("f", '{"text": "a"}')]),
        ("a <function=g>\n</function>\n</tool_call> b", "a b", [("g", "{}")]),
        ("<tool_call>\n<function=g>\n</tool_call>", "", [("g", "{}")]),
        ("<tool_call><function=g></function>", "", [("g", "{}")]),
        ('<tool_call>\n{"name": "f", "arguments": {"count": 1}}\n</tool_call>', "", [("f", '{"count": 1}')]),
        # The model forgets to close a value.
        (
            "<tool_call>\n<function=f>\n<parameter=text>\na\n<parameter=count>\n1\n</function>\n</tool_call>",
            "",
            [("f", '{"text": "a", "count": 1}')],
        ),
        # Tags within a value are part of it.
        (written(text="a</parameter>b\n</parameter>\nc"), "", [("f", '{"text": "a</parameter>b\\n</parameter>\\nc"}')]),
        (written(text="<tool_call>\n</function> <"), "", [("f", '{"text": "<tool_call>\\n</function> <"}')]),
        (written(text="<parameter=count>\n<x\n"), "", [("f", '{"text": "<parameter=count>\\n<x\\n"}')]),
        (written(text="a\n<parameter=nope>"), "", [("f", '{"text": "a\\n<parameter=nope>"}')]),
        (written(text="a\n<parameter=text>"), "", [("f", '{"text": "a\\n<parameter=text>"}')]),
        (written(text=FAR_APART), "", [("f", json.dumps({"text": FAR_APART}))]),
    ],
)
def test_calls(text: str, content: str, calls: list[tuple[str, str]]) -> None:
    assert read(text) == (content, calls)


@pytest.mark.parametrize(
    "text",
    [
        "<function=",
        "<function=f",
        "a < b and <function> of x",
        "<tool_call>\n<function=f>",
        "<tool_call>\n<function=f>\nno",
        "<function=other>\n</function>",
        written("other", text="a"),
        "<function=f >\n</function>",
        "<function=f>" + " " * 300 + "</function>",
    ],
)
def test_what_is_no_call_of_a_known_tool_is_text(text: str) -> None:
    assert read(text) == (text, [])


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("<function=f>\n<parameter=text>\nab\n", '{"text": "ab'),
        ("<function=f>\n<parameter=text>\nab\n</parameter>\n", '{"text": "ab'),
        ("<function=f>\n<parameter=text>\nab\n</parameter>\n<parameter=cou", '{"text": "ab"'),
        ("<function=f>\n<parameter=count>\n1", '{"count": '),
        ("<function=f>\n<parameter=" + "k" * 400, '{"' + "k" * 256 + '": "' + "k" * 144),
    ],
)
def test_a_call_that_breaks_off_is_not_whole(text: str, arguments: str) -> None:
    assert read(text) == ("", [("f", arguments)])
    with pytest.raises(ValueError):
        json.loads(arguments)


def test_what_can_be_no_call_is_not_held_back() -> None:
    for piece in ("<tool_call>\n<function=other", "<function=f>\nno", "<function=f>\n</p", "<functions"):
        parser = CallParser(TAGGED, TOOLS, lambda: "id")
        assert ParsedDelta(0, tuple(parser.push(piece))).text == piece


def test_strings_are_passed_on_as_they_come_and_other_values_when_they_are_whole() -> None:
    parser = CallParser(TAGGED, TOOLS, lambda: "id")
    pieces = (
        "<tool_call>\n<function=f>\n",
        "<parameter=text>\n",
        'a"b',
        "\n",
        "c\n</para",
        "meter>\n",
        "<parameter=co",
    )
    more = ("unt>\n1", "2\n</parameter>\n", "</function>", "\n</tool_call>")
    told = [parser.push(piece) for piece in pieces + more]
    fragments = ["".join(part.fragment for part in each if isinstance(part, ToolCallArguments)) for each in told]
    assert told[1][0] == ToolCallStart(0, "id", "f")
    assert fragments == ["", '{"text": "', 'a\\"b', "", "\\nc", "", '"', ', "count": ', "", "12}", ""]


texts = st.text(st.sampled_from(list('ab<>/=\n "\\é')), max_size=12)
lines = st.lists(
    st.sampled_from(["</parameter>", "</function>", "<parameter=text>", "<tool_call>", "x", "\n", "\n\n", "<"]),
    max_size=6,
).map("".join)


def is_told_apart(value: str) -> bool:
    """Returns whether the value has no end of a value in it, as the parser sees one."""
    ends = ("</parameter>\n</function>", "</parameter></function>", "</parameter>\n\n</function>", "<parameter=text>")
    return not any(end in value + "\n" for end in ends) and "</parameter><parameter" not in value.replace("\n", "")


@settings(max_examples=60, derandomize=True, deadline=None)
@given(st.lists(texts | lines, min_size=1, max_size=3))
def test_text_comes_through(values: list[str]) -> None:
    values = [value for value in values if is_told_apart(value)]
    content, calls = read("\n".join(written(text=value) for value in values))
    assert content == "" and [json.loads(arguments) for _, arguments in calls] == [{"text": value} for value in values]


@settings(max_examples=50, derandomize=True, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(SCHEMA["properties"])), texts, max_size=5))
def test_arguments_are_always_json(values: dict[str, str]) -> None:
    calls = read(written(**values))[1]
    assert list(json.loads(calls[0][1])) == list(values)


def test_a_long_answer_takes_no_quadratic_time() -> None:
    value = "</parameter>\n<" * 30_000
    parser = CallParser(TAGGED, TOOLS, lambda: "id")
    text = written(text=value)
    parts = [part for start in range(0, len(text), 4) for part in parser.push(text[start : start + 4])]
    assert json.loads(ParsedDelta(0, tuple(parts)).tool_calls[0].arguments) == {"text": value}
