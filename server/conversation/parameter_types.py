"""Says which types of JSON a tool's parameters have, for models that write values as plain text, without quotes."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from octavo.server.http.reading import read_json

Schema = Mapping[str, Any]  # of the arguments of a tool
Types = tuple[str, ...]  # names of JSON's types in the order of the schema; empty: the schema names none

_NULL = ("null", "none")  # templates write Python's None where a call has null
_COMBINED = ("anyOf", "oneOf", "allOf")


def properties_of(tool: Schema) -> Mapping[str, Any]:
    """Returns the schema of each parameter that the schema of a tool's arguments declares."""
    properties = tool.get("properties")
    return properties if isinstance(properties, Mapping) else {}


def types_of(schema: Any, tool: Schema) -> Types:
    """Returns the types that a parameter's schema allows. References are looked up in the schema of the tool."""
    return tuple(dict.fromkeys(_types(schema, tool, set())))


def _types(schema: Any, tool: Schema, followed: set[str]) -> Iterator[str]:
    """Yields the types, some of them repeatedly. Each reference is followed once: there may be circles."""
    if not isinstance(schema, Mapping):
        return
    named = schema.get("type")
    if isinstance(named, str):
        yield named
    elif isinstance(named, list):
        yield from (each for each in named if isinstance(each, str))
    elif isinstance(schema.get("enum"), list):
        yield from map(_type_of, schema["enum"])
    elif "const" in schema:
        yield _type_of(schema["const"])
    else:
        for each in _parts(schema):
            yield from _types(each, tool, followed)
        reference = schema.get("$ref")
        if isinstance(reference, str) and reference not in followed:
            followed.add(reference)
            yield from _types(referred(reference, tool), tool, followed)
        yield from (kind for key, kind in (("properties", "object"), ("items", "array")) if key in schema)


def _parts(schema: Schema) -> Iterator[Any]:
    for key in _COMBINED:
        if isinstance(schema.get(key), list):
            yield from schema[key]


def referred(reference: str, tool: Schema) -> Any:
    """Returns what a reference such as #/$defs/place names in the schema of a tool; None if that is nothing."""
    found: Any = tool
    for key in reference.removeprefix("#").split("/")[1:]:
        found = found.get(key.replace("~1", "/").replace("~0", "~")) if isinstance(found, Mapping) else None
    return found


def _type_of(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case str():
            return "string"
        case int():
            return "integer"
        case float():
            return "integer" if value.is_integer() else "number"
        case list():
            return "array"
        case _:
            return "object"


def is_text(types: Types) -> bool:
    """Returns whether every text is the value of a parameter of these types, as it stands."""
    return not types or (types[0] == "string" and "null" not in types)


def as_json(text: str, types: Types) -> str:
    """Returns a value as JSON text: that of the first type which the text can be or, if there is none, a string.

    Null is tried first. A parameter that is not for text takes it, even if its schema does not: models write null for
    what they leave out.
    """
    word = text.strip()
    if word.lower() in _NULL and types and ("null" in types or "string" not in types):
        return "null"
    before_string: Sequence[str] = types[: types.index("string")] if "string" in types else types
    for each in before_string:
        if (written := _written(word, each)) is not None:
            return written
    return json.dumps(text, ensure_ascii=False)


def _written(word: str, wanted: str) -> str | None:
    """Returns the JSON text of a value of the wanted type, or None if the word is not one."""
    if wanted == "boolean":
        return word.lower() if word.lower() in ("true", "false") else None
    try:
        found = _type_of(read_json(word))
    except ValueError:
        return None
    return word if found == wanted or (found, wanted) == ("integer", "number") else None
