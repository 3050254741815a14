"""Makes random JSON schemas of the kinds that clients send: nested, bounded, enumerated, with references."""

from random import Random
from typing import Any

Schema = dict[str, Any]
PATTERNS = ("^[a-z]{1,6}$", "^[A-Z]{2}-[0-9]{3}$", "^(yes|no)$", "[0-9]", "^#[0-9a-f]{6}$")
WORDS = ("alpha", "beta", 'qu"ote', "é", "", "tab\t")
DEPTH = 3


def random_schema(random: Random) -> Schema:
    """Returns the schema of an object. Its properties may refer to $defs, and these to themselves."""
    schema = _object(random, DEPTH)
    schema["$defs"] = {
        "leaf": _scalar(random),
        "list": {
            "type": "object",
            "properties": {"value": {"$ref": "#/$defs/leaf"}, "next": {"$ref": "#/$defs/list"}},
            "required": ["value"],
            "additionalProperties": False,
        },
    }
    return schema


def _any(random: Random, depth: int) -> Schema:
    if depth == 0:
        return _scalar(random)
    makers = (_scalar, _scalar, _nested_object, _array, _either, _exactly_one, _all, _reference)
    made = random.choice(makers)
    return _scalar(random) if made is _scalar else made(random, depth - 1)


def _scalar(random: Random, depth: int = 0) -> Schema:
    low = random.randint(-50, 50)
    return random.choice(
        [
            {"type": "string", "maxLength": random.randint(1, 8)},
            {"type": "string", "minLength": 2, "maxLength": random.randint(2, 9)},
            {"type": "string", "pattern": random.choice(PATTERNS[:3] + PATTERNS[4:])},
            {"type": "integer", "minimum": low, "maximum": low + random.randint(0, 300)},
            {"type": "integer", "exclusiveMinimum": low, "exclusiveMaximum": low + random.randint(2, 30)},
            {"type": "number", "minimum": low + 0.5, "maximum": low + 7.25},
            {"enum": random.sample([*WORDS, 1, 2.5, None, True, ["x"], {"a": 1}], 4)},
            {"const": random.choice([0, "only", None, [1, 2], {"k": "v"}])},
            {"type": random.choice([["string", "null"], ["boolean", "integer"]]), "maxLength": 5},
            {"type": "integer", "multipleOf": random.choice([2, 5, 10])},
            {"type": random.choice(["boolean", "null"])},
        ]
    )


def _object(random: Random, depth: int) -> Schema:
    names = random.sample(["id", "name", "tags", "size", "a b", "ключ"], random.randint(1, 4))
    schema: Schema = {
        "type": "object",
        "properties": {name: _any(random, depth) for name in names},
        "required": random.sample(names, random.randint(0, len(names))),
    }
    schema["additionalProperties"] = random.choice([False, False, {"type": "integer", "minimum": 0}])
    return schema


def _nested_object(random: Random, depth: int) -> Schema:
    return _object(random, depth)


def _array(random: Random, depth: int) -> Schema:
    low = random.randint(0, 2)
    array: Schema = {"type": "array", "items": _any(random, depth), "minItems": low, "maxItems": low + 2}
    if random.random() < 0.3:
        array |= {"prefixItems": [_scalar(random), _scalar(random)]}
    return array


def _either(random: Random, depth: int) -> Schema:
    return {"anyOf": [_any(random, depth) for _ in range(random.randint(2, 3))]}


def _exactly_one(random: Random, depth: int) -> Schema:
    """Returns a oneOf of two schemas, which a constant tells apart."""
    return {
        "oneOf": [
            {
                "type": "object",
                "properties": {"kind": {"const": kind}, "body": _any(random, depth)},
                "required": ["kind"],
                "additionalProperties": False,
            }
            for kind in ("cat", "dog")
        ]
    }


def _all(random: Random, depth: int) -> Schema:
    return {"allOf": [{"type": "integer", "minimum": -5}, {"maximum": random.randint(0, 40)}]}


def _reference(random: Random, depth: int) -> Schema:
    return {"$ref": random.choice(["#/$defs/leaf", "#/$defs/list"])}
