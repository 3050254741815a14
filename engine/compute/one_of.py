"""Turns oneOf into anyOf where no two of its schemas can match at once: llguidance has anyOf only.

Where a property tells the schemas apart, but some of them do not require it, it is made required in them: an output
with the property matches one schema at most.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from octavo.engine.compute.disjoint import Disjointness

Schema = Any


def settle_one_of(root: dict[str, Any], definitions: Mapping[str, Schema]) -> None:
    """Changes each oneOf in a rewritten schema and its definitions, in place.

    One that is left is up to llguidance, which refuses it unless other keywords beside it tell the schemas apart.
    """
    disjoint = Disjointness(definitions)
    for node in [*_schemas(root), *(each for schema in definitions.values() for each in _schemas(schema))]:
        given = node.pop("discriminator", None)
        options = node.get("oneOf")
        if isinstance(options, list) and _told_apart(node, options, given, disjoint):
            _rename(node)


def _told_apart(node: dict[str, Any], options: list[Schema], given: Any, disjoint: Disjointness) -> bool:
    """Returns whether one option at most can match; it may require a property for that."""
    beside = {keyword: value for keyword, value in node.items() if keyword != "oneOf"}
    whole = [{"allOf": [beside, option]} for option in options] if beside else options
    if disjoint.all_are(whole):
        return True
    objects = [each for option in options if (each := disjoint.own_node(option)) is not None]
    if len(objects) < len(options) or not all(disjoint.is_object(option) for option in whole):
        return False
    named = given.get("propertyName") if isinstance(given, dict) else None
    if isinstance(named, str) and _by_values(named, objects, given["values"], disjoint):
        return True
    for name in [named] if isinstance(named, str) else disjoint.common_properties(whole):
        if disjoint.all_are_by(name, whole):
            for each in objects:
                _require(each, name)
            return True
    return False


def _by_values(
    name: str, objects: Sequence[dict[str, Any]], values: Sequence[list[str]], disjoint: Disjointness
) -> bool:
    """Gives OpenAPI's discriminator its values, where the options leave them open; returns whether it did."""
    every = [value for each in values for value in each]
    if not all(values) or len(set(every)) < len(every) or len({id(each) for each in objects}) < len(objects):
        return False
    if not all(disjoint.leaves_open(each, name) for each in objects):
        return False
    for each, own in zip(objects, values, strict=True):
        each["properties"] = {**each.get("properties", {}), name: {"enum": own}}
        _require(each, name)
    return True


def _require(schema: dict[str, Any], name: str) -> None:
    if name not in schema.get("required", ()):
        schema["required"] = [*schema.get("required", ()), name]


def _rename(node: dict[str, Any]) -> None:
    """Makes the oneOf of a node its anyOf, in the same place: the order of keywords is that of properties."""
    items = list(node.items())
    node.clear()
    for keyword, value in items:
        if keyword != "oneOf":
            node[keyword] = value
        elif any(other == "anyOf" for other, _ in items):
            node["allOf"] = [*next((value for other, value in items if other == "allOf"), ()), {"anyOf": value}]
        else:
            node["anyOf"] = value


def _schemas(schema: Schema) -> Iterator[dict[str, Any]]:
    """Yields a schema and those in it; not those that it refers to."""
    waiting = [schema]
    while waiting:
        node = waiting.pop()
        if not isinstance(node, dict):
            continue
        yield node
        for keyword, value in list(node.items()):
            if keyword in ("properties", "patternProperties") and isinstance(value, dict):
                waiting += value.values()
            elif keyword in ("allOf", "anyOf", "oneOf", "prefixItems", "items") and isinstance(value, list):
                waiting += value
            elif keyword in ("additionalProperties", "additionalItems", "items"):
                waiting.append(value)
