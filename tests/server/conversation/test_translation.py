"""Tests that complaints of the chat request reach clients of other APIs in the names of their own bodies."""

import ast
from pathlib import Path

import pytest

import octavo.server.http.errors
from octavo.server.conversation.translation import declared, naming
from octavo.server.http.errors import ContextLengthExceeded, FieldName, InvalidRequest
from octavo.server.openai.responses_request import Format, FunctionTool

NAMES = {"messages": "input", "response_format": "text.format", "stop": "stop_sequences"}


@pytest.mark.parametrize(
    ("param", "told"),
    [
        ("messages", "input"),
        ("messages.3.content", "input"),
        ("response_format.json_schema.name", "text.format"),
        ("stop", "stop_sequences"),
        ("stop_token_ids", "stop_token_ids"),
        ("temperature", "temperature"),
    ],
)
def test_names(param: str, told: str) -> None:
    with pytest.raises(InvalidRequest) as caught, naming(NAMES):
        raise InvalidRequest("{param} is wrong, not 'stopped'.", param)
    assert (caught.value.param, caught.value.message) == (told, f"'{told}' is wrong, not 'stopped'.")


def test_the_error_stays_what_it_is() -> None:
    with pytest.raises(ContextLengthExceeded) as caught, naming(NAMES):
        raise ContextLengthExceeded("too long")
    assert (caught.value.param, caught.value.message) == (None, "too long")
    with pytest.raises(ContextLengthExceeded) as caught, naming(NAMES):
        raise ContextLengthExceeded("too many messages", "messages")
    assert (caught.value.param, caught.value.message) == ("input", "too many messages")


def test_every_field_of_a_message_is_named_as_the_body_does_and_nothing_else() -> None:
    with pytest.raises(InvalidRequest) as caught, naming(NAMES):
        template = "{param} names '{name}', which is not allowed with {other}."
        raise InvalidRequest(template, "messages.0", name="{stop} 'stop'", other=FieldName("response_format.type"))
    assert caught.value.message == "'input' names '{stop} 'stop'', which is not allowed with 'text.format'."


def test_templates_are_literals() -> None:
    """Checks that what a client sends is a value of a template, never part of it, since it may hold braces."""
    errors = {name for name, value in vars(octavo.server.http.errors).items() if isinstance(value, type)}
    templates: list[ast.expr] = []
    for path in (Path(__file__).parents[3] / "server").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            match node:
                case ast.Call(func=ast.Name(id=name), args=[template, _]) if name in errors:
                    templates.append(template)
                case ast.Assign(targets=[ast.Name(id="template")], value=template):
                    templates.append(template)
    assert len(templates) > 30
    made = (ast.JoinedStr, ast.BinOp)
    assert [ast.unparse(template) for template in templates if isinstance(template, made)] == []


def test_declared_fields_alone() -> None:
    tool = FunctionTool.model_validate({"type": "function", "name": "f", "strict": None, "surprise": 1})
    assert declared(tool) == {"type": "function", "name": "f"}
    form = Format.model_validate({"type": "json_schema", "name": "n", "schema": {"type": "object"}})
    assert declared(form) == {"type": "json_schema", "name": "n", "schema": {"type": "object"}}
