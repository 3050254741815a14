"""Defines the fields that bind an answer to a schema, a regular expression, a choice or a grammar."""

import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from octavo.engine.api import Grammar
from octavo.server.generation.parameters import is_absent
from octavo.server.http.errors import FieldName, InvalidRequest
from octavo.server.http.fields import Object, refused_as

ANY_OBJECT = '{"type":"object"}'

JsonSchema = Annotated[dict[str, Any] | str, refused_as("must be a JSON schema: an object, or its text")]
Choices = Annotated[list[str], Field(fail_fast=True)]


class JsonSchemaFormat(Object):
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    """Names the format in at most 64 letters, digits, underscores and dashes. It changes nothing."""
    description: str | None = None
    """Describes what the format is for. It changes nothing."""
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    """Gives the JSON schema of the answer. The default allows any object."""
    strict: bool | None = None
    """Changes nothing: the answer always keeps to the schema."""


class ResponseFormat(Object):
    type: Literal["text", "json_object", "json_schema", "grammar", "regex"]
    """Chooses between free text, any JSON object, and JSON that follows a schema.

    A grammar and a regular expression are extensions, as in the APIs of Fireworks and Together.
    """
    json_schema: JsonSchemaFormat | None = None
    """Gives the schema, with the type json_schema."""
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    """Gives the schema without a name, with the type json_object or json_schema. This is an extension."""
    grammar: str | None = None
    """Gives the grammar, in Lark's syntax or llama.cpp's (GBNF), with the type grammar. This is an extension."""
    pattern: str | None = None
    """Gives the regular expression, with the type regex. This is an extension."""
    name: str | None = None
    """Names the format. It changes nothing."""
    description: str | None = None
    """Describes what the format is for. It changes nothing."""
    strict: bool | None = None
    """Changes nothing: the answer always keeps to the schema."""


# The fields that tell more of a type. One of them is required where there are any but for json_object.
BELONGING = {
    "text": (),
    "json_object": ("schema",),
    "json_schema": ("json_schema", "schema"),
    "grammar": ("grammar",),
    "regex": ("pattern",),
}


class StructuredOutputs(Object):
    json_: JsonSchema | None = Field(default=None, alias="json")
    """Gives a JSON schema that the answer follows."""
    json_object: bool | None = None
    """Asks for a JSON object as the answer."""
    regex: str | None = None
    """Gives a regular expression that matches the whole answer."""
    choice: Choices | None = None
    """Gives strings, one of which is the answer."""
    grammar: str | None = None
    """Gives a context-free grammar of the answer, in Lark's syntax or llama.cpp's (GBNF)."""


@dataclass(frozen=True, slots=True)
class Constraint:
    """A Constraint is a grammar that binds the answer, with the name of the field that asked for it."""

    field: str
    grammar: Grammar


class Structured(Object):
    """Holds the fields of a request that bind its answer; at most one of them may ask for something."""

    response_format: ResponseFormat | None = None
    """Asks for text, a JSON object, or JSON that follows a schema. The default is text."""
    structured_outputs: StructuredOutputs | None = None
    """Binds the answer by one of json, json_object, regex, choice and grammar. This is an extension."""
    guided_json: JsonSchema | None = None
    """Is an older name of structured_outputs.json. This is an extension."""
    guided_regex: str | None = None
    """Is an older name of structured_outputs.regex. This is an extension."""
    guided_choice: Choices | None = None
    """Is an older name of structured_outputs.choice. This is an extension."""
    guided_grammar: str | None = None
    """Is an older name of structured_outputs.grammar. This is an extension."""
    json_schema: JsonSchema | None = None
    """Is structured_outputs.json as llama.cpp and SGLang name it. This is an extension."""
    regex: str | None = None
    """Is structured_outputs.regex as SGLang names it. This is an extension."""
    grammar: str | None = None
    """Is structured_outputs.grammar as llama.cpp names it. This is an extension."""
    ebnf: str | None = None
    """Is structured_outputs.grammar as SGLang names it. This is an extension."""

    def constraint(self) -> Constraint | None:
        """Returns what binds the answer; None if nothing does. Raises InvalidRequest when it is bound twice."""
        outputs = self.structured_outputs or StructuredOutputs()
        refuse_unknown(outputs, "structured_outputs")
        wanted = [
            *_of_format(self.response_format),
            *_of_object("structured_outputs.json_object", outputs.json_object),
            *_of_schema("structured_outputs.json", outputs.json_),
            *_of_schema("guided_json", self.guided_json),
            *_of_text("structured_outputs.regex", "regex", outputs.regex),
            *_of_text("guided_regex", "regex", self.guided_regex),
            *_of_choices("structured_outputs.choice", outputs.choice),
            *_of_choices("guided_choice", self.guided_choice),
            *_of_text("structured_outputs.grammar", "grammar", outputs.grammar),
            *_of_text("guided_grammar", "grammar", self.guided_grammar),
            *_of_schema("json_schema", self.json_schema),
            *_of_text("regex", "regex", self.regex),
            *_of_text("grammar", "grammar", self.grammar),
            *_of_text("ebnf", "grammar", self.ebnf),
        ]
        if len(wanted) > 1:
            first, second = wanted[0].field, wanted[1].field
            raise InvalidRequest(
                "{param} is not allowed with {other}; leave one of them out.", second, other=FieldName(first)
            )
        return wanted[0] if wanted else None


def refuse_unknown(given: Object, field: str) -> None:
    """Raises InvalidRequest for what a field holds that nobody here knows, since it may ask for something."""
    for name, value in (given.model_extra or {}).items():
        if not is_absent(value) and value is not False:
            template, shown = "{param} is not supported by this server; leave it out.", f"{field}.{name[:100]}"
            raise InvalidRequest(template, shown, "unsupported_parameter")


def _of_format(format: ResponseFormat | None) -> list[Constraint]:
    if format is None:
        return []
    refuse_unknown(format, "response_format")
    found = {
        "json_schema": _of_named_schema(format.json_schema),
        "schema": _of_bare_schema(format),
        "grammar": _of_text("response_format.grammar", "grammar", format.grammar),
        "pattern": _of_text("response_format.pattern", "regex", format.pattern),
    }
    belonging = BELONGING[format.type]
    for name in found:
        if found[name] and name not in belonging:
            field = f"response_format.{name}"
            raise InvalidRequest("{param} does not belong to the type {type}.", field, type=format.type)
    wanted = [constraint for name in belonging for constraint in found[name]]
    if wanted or not belonging:
        return wanted
    if format.type == "json_object":
        return _of_object("response_format", True)
    field = f"response_format.{belonging[0]}"
    raise InvalidRequest("The required parameter {param} is missing.", field, "missing_required_parameter")


def _of_named_schema(format: JsonSchemaFormat | None) -> list[Constraint]:
    if format is None:
        return []
    refuse_unknown(format, "response_format.json_schema")
    text = ANY_OBJECT if format.schema_ is None else json.dumps(format.schema_)
    return [Constraint("response_format.json_schema.schema", Grammar("json", text))]


def _of_bare_schema(format: ResponseFormat) -> list[Constraint]:
    """A schema beside the type json_object that says nothing of types describes an object."""
    if format.schema_ is None:
        return []
    schema = ({"type": "object"} if format.type == "json_object" else {}) | format.schema_
    return [Constraint("response_format.schema", Grammar("json", json.dumps(schema)))]


def _of_object(field: str, wanted: bool | None) -> list[Constraint]:
    return [Constraint(field, Grammar("json", ANY_OBJECT))] if wanted else []


def _of_schema(field: str, schema: dict[str, Any] | str | None) -> list[Constraint]:
    if is_absent(schema):
        return []
    return [Constraint(field, Grammar("json", schema if isinstance(schema, str) else json.dumps(schema)))]


def _of_text(field: str, kind: Literal["regex", "grammar"], text: str | None) -> list[Constraint]:
    return [Constraint(field, Grammar(kind, text))] if text else []


def _of_choices(field: str, choices: list[str] | None) -> list[Constraint]:
    return [Constraint(field, Grammar("choice", json.dumps(choices)))] if choices else []
