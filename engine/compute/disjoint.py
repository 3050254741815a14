"""Proves that no value can match two JSON schemas at once. It takes rewritten schemas; `no proof` is no disproof."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

Schema = Any

MAX_DEPTH = 12  # of references and nested properties
MAX_STEPS = 100_000  # pairs of schemas that are compared, for a whole schema
KINDS = frozenset({"null", "boolean", "integer", "fraction", "string", "array", "object"})
_OF_TYPE = {"number": frozenset({"integer", "fraction"})} | {kind: frozenset({kind}) for kind in KINDS - {"fraction"}}


@dataclass(slots=True)
class _Facts:
    """Facts hold for each value that matches a schema."""

    kinds: frozenset[str] = KINDS
    literals: frozenset[str] | None = None  # the only values, as canonical JSON; None: not known
    properties: dict[str, list[Schema]] = field(default_factory=dict)  # what a property matches, if it is there
    required: set[str] = field(default_factory=set)
    closed: list[frozenset[str]] = field(default_factory=list)  # each: there are no other properties than these
    unions: list[Sequence[Schema]] = field(default_factory=list)  # each: one of these matches
    least: float = float("-inf")  # of a number
    most: float = float("inf")
    impossible: bool = False


class Disjointness:
    """Disjointness compares schemas that refer to the same definitions."""

    def __init__(self, definitions: Mapping[str, Schema]) -> None:
        self._definitions = definitions
        self._steps = 0

    def are(self, one: Schema, other: Schema, depth: int = 0) -> bool:
        """Returns whether it is proved that no value matches both."""
        self._steps += 1
        if self._steps > MAX_STEPS or depth > MAX_DEPTH:
            return False
        a, b = self._facts(one, depth), self._facts(other, depth)
        return self._contradict(a, b, depth) or self._by_unions(a, other, depth) or self._by_unions(b, one, depth)

    def _contradict(self, a: _Facts, b: _Facts, depth: int) -> bool:
        kinds = a.kinds & b.kinds
        if a.impossible or b.impossible or not kinds:
            return True
        if a.literals is not None and b.literals is not None and not a.literals & b.literals:
            return True
        if kinds <= {"integer", "fraction"}:
            return a.most < b.least or b.most < a.least
        return kinds == {"object"} and self._objects(a, b, depth)

    def _objects(self, a: _Facts, b: _Facts, depth: int) -> bool:
        """Returns whether a property that one of the two requires is different in the other, or not allowed there."""
        for one, other in ((a, b), (b, a)):
            if any(not one.required <= names for names in other.closed):
                return True
        return any(self._differ(name, a, b, depth) for name in a.required | b.required)

    def _differ(self, name: str, a: _Facts, b: _Facts, depth: int) -> bool:
        ones, others = a.properties.get(name, ()), b.properties.get(name, ())
        return any(self.are(one, other, depth + 1) for one in ones for other in others)

    def _by_unions(self, facts: _Facts, other: Schema, depth: int) -> bool:
        return any(all(self.are(option, other, depth + 1) for option in union) for union in facts.unions)

    def all_are(self, schemas: Sequence[Schema]) -> bool:
        """Returns whether it is proved that no value matches two of the schemas.

        Values are compared first: thousands of schemas may differ in a value, and be too many to compare in pairs.
        """
        facts = [self._facts(schema, 0) for schema in schemas]
        if _differ_in_values([each.literals for each in facts]):
            return True
        names = [name for name in self.common_properties(schemas) if all(name in each.required for each in facts)]
        if any(_differ_in_values([self._values(name, each) for each in facts]) for name in names):
            return True
        return all(self.are(one, other) for one, other in combinations(schemas, 2))

    def all_are_by(self, name: str, schemas: Sequence[Schema]) -> bool:
        """Returns whether no value of a property matches two of the schemas."""
        facts = [self._facts(schema, 0) for schema in schemas]
        if _differ_in_values([self._values(name, each) for each in facts]):
            return True
        return all(self._differ(name, one, other, 0) for one, other in combinations(facts, 2))

    def _values(self, name: str, facts: _Facts) -> frozenset[str] | None:
        """Returns the only values that a property may have; None: not known."""
        found = (self._facts(each, 1).literals for each in facts.properties.get(name, ()))
        return next((literals for literals in found if literals is not None), None)

    def common_properties(self, schemas: Sequence[Schema]) -> list[str]:
        """Returns the names that all schemas say something of."""
        found = [self._facts(schema, 0).properties for schema in schemas]
        return [name for name in found[0] if all(name in each for each in found)] if found else []

    def is_object(self, schema: Schema) -> bool:
        """Returns whether only objects match."""
        return self._facts(schema, 0).kinds == {"object"}

    def leaves_open(self, schema: Schema, name: str) -> bool:
        """Returns whether a property may be any string."""
        facts = self._facts(schema, 0)
        if any(name not in names for names in facts.closed):
            return False
        return all(each in (True, {}, {"type": "string"}) for each in facts.properties.get(name, ()))

    def own_node(self, schema: Schema) -> dict[str, Any] | None:
        """Returns the object that a schema consists of, behind references."""
        for _ in range(MAX_DEPTH):
            if not isinstance(schema, dict):
                return None
            if schema.keys() != {"$ref"}:
                return schema
            schema = self._target(schema)
        return None

    def _target(self, schema: dict[str, Any]) -> Schema:
        return self._definitions.get(str(schema["$ref"]).rpartition("/")[2], True)

    def _facts(self, schema: Schema, depth: int) -> _Facts:
        facts = _Facts()
        self._gather(facts, schema, depth)
        if facts.literals is not None:
            facts.literals = frozenset(each for each in facts.literals if _kind(json.loads(each)) in facts.kinds)
            facts.kinds &= {_kind(json.loads(each)) for each in facts.literals}
        return facts

    def _gather(self, facts: _Facts, schema: Schema, depth: int) -> None:
        """Adds what holds for each value that matches the schema."""
        self._steps += 1
        if schema is False:
            facts.impossible = True
        if not isinstance(schema, dict) or depth > MAX_DEPTH or self._steps > MAX_STEPS:
            return
        _gather_values(facts, schema)
        _gather_object(facts, schema)
        if "$ref" in schema:
            self._gather(facts, self._target(schema), depth + 1)
        for each in _list(schema.get("allOf")):
            self._gather(facts, each, depth + 1)
        facts.unions += [options for name in ("anyOf", "oneOf") if (options := _list(schema.get(name)))]


def _gather_values(facts: _Facts, schema: dict[str, Any]) -> None:
    if "type" in schema:
        types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        facts.kinds &= frozenset().union(*(_OF_TYPE.get(each, KINDS) for each in types if isinstance(each, str)))
    for values in ([schema["const"]] if "const" in schema else None, schema.get("enum")):
        if isinstance(values, list):
            literals = frozenset(map(_canonical, values))
            facts.literals = literals if facts.literals is None else facts.literals & literals
    for name in ("minimum", "exclusiveMinimum"):
        if _is_number(schema.get(name)):
            facts.least = max(facts.least, schema[name])
    for name in ("maximum", "exclusiveMaximum"):
        if _is_number(schema.get(name)):
            facts.most = min(facts.most, schema[name])


def _gather_object(facts: _Facts, schema: dict[str, Any]) -> None:
    properties = schema.get("properties")
    if isinstance(properties, dict):
        for name, each in properties.items():
            facts.properties.setdefault(name, []).append(each)
    facts.required |= {name for name in _list(schema.get("required")) if isinstance(name, str)}
    if schema.get("additionalProperties") is False and not schema.get("patternProperties"):
        facts.closed.append(frozenset(properties) if isinstance(properties, dict) else frozenset())


def _differ_in_values(literals: Sequence[frozenset[str] | None]) -> bool:
    """Returns whether all values are known, and none comes twice."""
    known = [each for each in literals if each is not None]
    return len(known) == len(literals) and sum(map(len, known)) == len(frozenset().union(*known))


def _list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else ()


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _canonical(value: Any) -> str:
    """Returns one text for each JSON value: 1 and 1.0 are the same value."""
    return json.dumps(_plain(value), sort_keys=True)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return {name: _plain(each) for name, each in value.items()} if isinstance(value, dict) else value


def _kind(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "fraction"
        case str():
            return "string"
        case _:
            return "array" if isinstance(value, list) else "object"
