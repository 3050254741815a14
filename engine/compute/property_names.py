"""Rewrites the keyword propertyNames, which llguidance does not have, as properties and patternProperties."""

from collections.abc import Callable
from typing import Any

Schema = Any
# The formats of names, as patterns. pydantic asks for these where the keys of a dict are UUIDs, dates or addresses.
FORMATS = {
    "uuid": "^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$",
    "date": (
        "^[0-9]{4}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)"
        "|02-(0[1-9]|1[0-9]|2[0-8]))$"
    ),
    "ipv4": r"^((25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])\.){3}(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])$",
}


class UnsupportedNames(ValueError):
    """Says that property names cannot be kept to their schema."""

    def __init__(self) -> None:
        super().__init__(
            '"propertyNames" is supported with "type", and with "enum", "const", "pattern", a length, or one '
            "of the formats uuid, date and ipv4, alone; simplify it."
        )


def with_property_names(schema: dict[str, Any], names: Schema, define: Callable[[Schema], Schema]) -> Schema:
    """Returns a rewritten schema whose objects keep to the schema of their property names. Raises UnsupportedNames.

    `define` returns a reference to what is used several times.
    """
    if not isinstance(names, dict):
        if names is not True:
            raise UnsupportedNames
        return schema
    asked = {keyword: value for keyword, value in names.items() if keyword != "type"}
    if "type" in names and "string" not in ([names["type"]] if isinstance(names["type"], str) else names["type"]):
        raise UnsupportedNames
    if not asked:
        return schema
    if "patternProperties" in schema:
        raise UnsupportedNames
    value = schema.get("additionalProperties", True)
    if len(asked) == 1 and (allowed := asked.get("enum", [asked["const"]] if "const" in asked else None)) is not None:
        return _among(schema, allowed, value, define)
    if schema.get("properties"):
        raise UnsupportedNames
    return schema | {"patternProperties": {_pattern(asked): value}, "additionalProperties": False}


def _among(schema: dict[str, Any], allowed: Any, value: Schema, define: Callable[[Schema], Schema]) -> Schema:
    """Lists the names that an object may have."""
    if not isinstance(allowed, list):
        raise UnsupportedNames
    listed, value = schema.get("properties", {}), define(value)
    names = [name for name in listed if name in allowed]
    names += [name for name in allowed if isinstance(name, str) and name not in listed]
    properties = {name: listed.get(name, value) for name in names}
    if any(name not in properties for name in schema.get("required", ())):
        return False
    return schema | {"properties": properties, "additionalProperties": False}


def _pattern(asked: dict[str, Any]) -> str:
    """Returns what a name must match. Raises UnsupportedNames."""
    match asked:
        case {"pattern": str(pattern), **others} if not others:
            return pattern
        case {"format": str(format), **others} if not others and format in FORMATS:
            return FORMATS[format]
        case {**others} if others.keys() <= {"minLength", "maxLength"}:
            return f"^(?s:.){{{others.get('minLength', 0)},{others.get('maxLength', '')}}}$"
        case _:
            raise UnsupportedNames
