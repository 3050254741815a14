"""Tests which types of JSON a schema allows a parameter, and what a written value becomes."""

import json
from typing import Any

import pytest

from octavo.server.conversation.parameter_types import as_json, is_text, properties_of, types_of

TOOL: dict[str, Any] = {
    "properties": {"a": {"type": "string"}, "b": {"$ref": "#/$defs/round"}, "c": True},
    "$defs": {
        "round": {"$ref": "#/$defs/round"},
        "unit": {"enum": ["C", None]},
        "of/a~b": {"type": "number"},
        "deep": {"$ref": "#/definitions/deeper"},
        "wide": {"anyOf": [{"$ref": f"#/$defs/{name}"} for name in ("wide", "wider", "unit") * 9]},
        "wider": {"oneOf": [{"$ref": f"#/$defs/{name}"} for name in ("wide", "wider") * 9]},
    },
    "definitions": {"deeper": {"type": "boolean"}},
}


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"type": "integer"}, ("integer",)),
        ({"type": ["null", "string", 5]}, ("null", "string")),
        ({"type": "string", "enum": [1]}, ("string",)),
        (
            {"enum": ["a", 1, 2.0, 2.5, None, True, [], {}]},
            ("string", "integer", "number", "null", "boolean", "array", "object"),
        ),
        ({"const": 5}, ("integer",)),
        ({"anyOf": [{"type": "string"}, {"type": "null"}, {"type": "string"}]}, ("string", "null")),
        ({"oneOf": [{"type": "array"}], "allOf": [{"type": "object"}]}, ("array", "object")),
        ({"allOf": [{"$ref": "#/$defs/unit"}], "default": "C"}, ("string", "null")),
        ({"$ref": "#/$defs/of~1a~0b"}, ("number",)),
        ({"$ref": "#/$defs/deep"}, ("boolean",)),
        ({"$ref": "#/$defs/round"}, ()),
        ({"$ref": "#/$defs/nothing/there"}, ()),
        ({"$ref": "#"}, ("object",)),
        ({"$ref": 5}, ()),
        ({"properties": {}}, ("object",)),
        ({"items": {}}, ("array",)),
        ({"anyOf": {}, "type": 5, "enum": 5}, ()),
        ({"description": "d"}, ()),
        (True, ()),
        (None, ()),
    ],
)
def test_types(schema: Any, expected: tuple[str, ...]) -> None:
    assert types_of(schema, TOOL) == expected


def test_the_parameters_of_a_tool() -> None:
    assert properties_of(TOOL) == TOOL["properties"]
    assert properties_of({}) == properties_of({"properties": []}) == {}


def test_references_that_branch_in_a_circle_end() -> None:
    assert types_of({"$ref": "#/$defs/wide"}, TOOL) == ("string", "null")


@pytest.mark.parametrize(
    ("text", "types", "expected"),
    [
        ("null", ("string",), "null"),
        ("null", (), "null"),
        (" None\n", ("string", "null"), None),
        ("null", ("integer", "string"), "null"),
        ("null", ("integer",), None),
        ("3", ("number",), 3),
        ("3.0", ("integer",), 3.0),
        ("3.5", ("integer", "number"), 3.5),
        ("3", ("string", "integer"), "3"),
        ("TRUE", ("boolean",), True),
        ("true", ("integer", "boolean"), True),
        ("true", ("integer",), "true"),
        ("[1", ("array", "object"), "[1"),
        ("{}", ("array", "object"), {}),
        ("x", ("fancy",), "x"),
    ],
)
def test_a_value_is_of_the_first_type_that_it_can_be(text: str, types: tuple[str, ...], expected: Any) -> None:
    value = json.loads(as_json(text, types))
    assert value == expected and type(value) is type(expected)
    if is_text(types):
        assert value == text


def test_only_what_is_text_for_certain_is_passed_on_as_it_comes() -> None:
    assert is_text(()) and is_text(("string",)) and is_text(("string", "integer"))
    assert not is_text(("string", "null")) and not is_text(("integer", "string")) and not is_text(("object",))
