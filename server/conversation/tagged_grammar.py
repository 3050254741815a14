"""Makes the rules of a call whose arguments are written between tags, where its schema can be kept to in that form."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from octavo.server.conversation.grammar_text import json_value, quoted
from octavo.server.conversation.parameter_types import Schema, properties_of, referred, types_of
from octavo.server.conversation.tools import Tool
from octavo.server.text.call_formats import END_OF_FUNCTION, END_OF_PARAMETER, FUNCTION, PARAMETER

_NOTES = frozenset({"title", "description", "default", "examples", "deprecated", "$schema", "$comment"})  # bind nothing
_DEFINED = ("$defs", "definitions")
_OF_TOOL = _NOTES | {"type", "properties", "required", "additionalProperties", *_DEFINED}
_OTHER_REFERENCE = re.compile(r'"\$ref": "(?!#/(?:\$defs|definitions)/)')
_TAG = r"<\/?(parameter|function)"  # no value that is demanded has one in it, so that the tags are the call's own
_MOST_PARAMETERS, _LONGEST_SCHEMA = 64, 100_000  # characters; what is defined is repeated for each parameter
_NEXT = f"\n{END_OF_PARAMETER}"


def tagged_call(position: int, tool: Tool) -> list[str] | None:
    """Returns the rules of `call_POSITION`, or None if the schema says more than tags can be held to.

    Parameters come in the order of the schema, and those that are not required may be left out. Parameters that the
    schema allows without naming them are left out always.
    """
    schema = tool.schema_of_arguments
    if not _is_plain(schema):
        return None
    properties, required = properties_of(schema), schema.get("required") or ()
    values = {
        key: _value(each, schema, f"{position}_{number}") for number, (key, each) in enumerate(properties.items())
    }
    if any(value is None or re.search(r"[>\n]", key) for key, value in values.items()):
        return None
    names = [f"parameter_{position}_{number}" + "?" * (key not in required) for number, key in enumerate(values)]
    head, end = quoted(f"{FUNCTION}{tool.name}>\n"), quoted(END_OF_FUNCTION)
    rules = [" ".join([f"call_{position}: {head}", *names, end])]
    for number, (key, value) in enumerate(values.items()):
        name, head = f"{position}_{number}", quoted(f"{PARAMETER}{key}>\n")
        rules += [f'parameter_{name}: {head} value_{name} "\\n"', *(value or ())]
    return rules


def _is_plain(schema: Schema) -> bool:
    """Returns whether the schema only names parameters, and not too many."""
    names, required = list(properties_of(schema)), schema.get("required") or []
    if len(names) > _MOST_PARAMETERS or len(json.dumps(schema)) > _LONGEST_SCHEMA or not schema.keys() <= _OF_TOOL:
        return False
    return isinstance(required, list) and all(each in names for each in required)


def _value(schema: Any, tool: Schema, name: str) -> list[str] | None:
    """Returns the rules of `value_NAME`, which is a value and the end of its parameter."""
    if not isinstance(schema, Mapping) or _OTHER_REFERENCE.search(json.dumps(schema)):
        return None
    types = types_of(schema, tool)
    if not types or next((each for each in types if each != "null"), None) == "string":
        return _text(_of_text(schema, tool), name)
    if "string" in types:
        return None
    whole = {**schema, **{key: tool[key] for key in _DEFINED if key in tool}}
    return [f"value_{name}: {json_value(json.dumps(whole))} {quoted(_NEXT)}"]


def _of_text(schema: Schema, tool: Schema) -> Schema:
    """Returns what binds the value if it is a string: what the schema refers to, or its alternative for strings."""
    match {key: value for key, value in schema.items() if key not in _NOTES}:
        case {"$ref": str(reference), **others} if not others:
            found = referred(reference, tool)
            return _of_text(found, tool) if isinstance(found, Mapping) and "$ref" not in found else schema
        case {"anyOf": list(options), **others} if not others:
            return next((each for each in options if "string" in types_of(each, {})), schema)
        case _:
            return schema


def _text(schema: Schema, name: str) -> list[str] | None:
    """Returns the rules of a value that is plain text, or None if more than its length or a choice is asked for."""
    binding = schema.keys() - _NOTES - {"type"}
    if binding <= {"enum", "const"} and binding:
        choices = list(_choices(schema))
        return [f"value_{name}: ({' | '.join(map(quoted, choices))}) {quoted(_NEXT)}"] if choices else None
    least, most = schema.get("minLength", 0), schema.get("maxLength")
    if not binding <= {"minLength", "maxLength"} or not _is_range(least, most):
        return None
    times = f"{{{least},{'' if most is None else most}}}"
    return [
        f"value_{name}[suffix={quoted(_NEXT)}]: TEXT_{name}",
        f"TEXT_{name}: /(?s:.{times})/ & ~/(?s:.*){_TAG}(?s:.*)/",
    ]


def _is_range(least: Any, most: Any) -> bool:
    """Returns whether a text can have so many characters; `most` may be None."""
    return type(least) is int and least >= 0 and (most is None or (type(most) is int and most >= least))


def _choices(schema: Schema) -> Iterator[str]:
    values = schema.get("enum", [schema.get("const")])
    for value in values if isinstance(values, list) else ():
        if isinstance(value, str) and not re.search(_TAG, value) and value == schema.get("const", value):
            yield value
