"""Rewrites JSON schemas as llguidance takes them: what constrains is kept, what only informs is left out.

    references      any way to write one         -> #/$defs/d0 of the new schema, which has what is referred to only
    annotations     title, nullable, x-...       -> left out, so that they do not make a reference a special case
    formats         those that nobody knows      -> left out: by JSON schema they constrain nothing
    propertyNames   a type, an enum, a pattern   -> properties, patternProperties
    oneOf           if at most one can match     -> anyOf (one_of.py)

Whatever the new schema lets through validates against the given one. A keyword that constrains and cannot be kept is
refused by name.
"""

from collections.abc import Callable
from typing import Any

from octavo.engine.compute.one_of import settle_one_of
from octavo.engine.compute.patterns import as_rust, with_readable_pattern
from octavo.engine.compute.property_names import with_property_names
from octavo.engine.compute.references import References

Schema = Any  # an object or a boolean; llguidance says what else is wrong

FORMATS = frozenset(
    {"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"}
)  # those that are kept to
BOUNDS = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"})
VALUES = frozenset({"multipleOf", "const", "enum", "type", "required", "pattern"})  # constraints that are no schemas
COUNTS = frozenset({"minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"})
SCHEMAS = frozenset({"additionalProperties", "additionalItems", "items"})
LISTS = frozenset({"allOf", "anyOf", "oneOf", "prefixItems", "items"})
MAPS = frozenset({"properties", "patternProperties"})
_OBJECT, _LIST = (dict, "an object"), (list, "an array")
_SHAPES: dict[str, tuple[Any, str]] = {
    **dict.fromkeys(MAPS, _OBJECT),
    **dict.fromkeys((LISTS - {"items"}) | {"enum", "required"}, _LIST),
    "type": (str | list, "a string or an array"),
    "$ref": (str, "a string"),
    "pattern": (str, "a string"),
}
MAX_REFERENCES = 16  # from one to the next, until something else comes
FARTHEST = 2**63 - 1024  # Bounds of 64 bits and more are for machines' numbers; the library reads none beyond this.
UNENDING = 2**31  # No output has so many characters, items or properties.

_MEANINGLESS: dict[str, Callable[[Any, dict[str, Any]], bool]] = {
    "not": lambda value, _: value is False,
    "if": lambda _, schema: "then" not in schema and "else" not in schema,
    "then": lambda _, schema: "if" not in schema,
    "else": lambda _, schema: "if" not in schema,
    "contains": lambda _, schema: schema.get("minContains") == 0 and "maxContains" not in schema,
    "minContains": lambda _, schema: "contains" not in schema or schema["minContains"] in (0, 1),
    "maxContains": lambda _, schema: "contains" not in schema,
    "uniqueItems": lambda value, schema: value is False or schema.get("maxItems") in (0, 1),
    "dependencies": lambda value, _: value == {},
    "dependentRequired": lambda value, _: value == {},
    "dependentSchemas": lambda value, _: value == {},
    "unevaluatedItems": lambda value, _: value in (True, {}),
    "unevaluatedProperties": lambda value, _: value in (True, {}),
    "$dynamicRef": lambda value, _: False,
    "$recursiveRef": lambda value, _: False,
}  # Each constrains and cannot be kept to, but for the cases in which it asks for nothing.
_IN_PLACE = ("$ref", "allOf", "anyOf", "oneOf")
# With these, it depends on the object which of its properties a schema tells of.
_MAY_EVALUATE = frozenset({"anyOf", "oneOf", "patternProperties", "additionalProperties", "propertyNames"})


def rewritten(schema: Schema) -> Schema:
    """Returns the schema as llguidance takes it. Raises ValueError, which says what cannot be kept to."""
    if not isinstance(schema, dict | bool):
        raise ValueError("a JSON schema is an object or a boolean")
    if isinstance(schema, bool):
        schema = {} if schema else {"enum": []}
    references = References(schema)
    rewriter = _Rewriter(references)
    root = rewriter.schema(schema, references.base_of_root)
    definitions = rewriter.definitions()
    if not isinstance(root, dict):
        root = {"enum": []}
    settle_one_of(root, definitions)
    options = {"x-guidance": schema["x-guidance"]} if "x-guidance" in schema else {}
    return {**root, **({"$defs": definitions} if definitions else {}), **options}


class _Rewriter:
    """Rewrites a schema, and whatever it refers to."""

    def __init__(self, references: References) -> None:
        self._references = references
        self._made: dict[str, Schema] = {}  # definitions of the new schema by name
        self._extra = 0

    def definitions(self) -> dict[str, Schema]:
        """Returns the definitions that the schemas refer to. Each may refer to more, which are rewritten, too."""
        while (found := self._references.next_to_define()) is not None:
            name, target, base = found
            self._made[name] = self.schema(target, base)
        return self._made

    def schema(self, given: Schema, base: str) -> Schema:
        """Returns a schema without what it need not have. `base` is the address that its references start from."""
        if not isinstance(given, dict):
            return given
        _check_shapes(given)
        base = self._references.base_within(given, base)
        evaluated = self._evaluated(given, base) if given.get("unevaluatedProperties") is False else None
        self._refuse_unsupported(given, evaluated)
        given = with_readable_pattern(given) if "pattern" in given else given
        made: dict[str, Any] = {}
        for keyword, value in given.items():
            self._add(made, keyword, value, given, base)
        if evaluated is not None:
            made.setdefault("additionalProperties", False)
            if evaluated:  # A schema beside others has them in its own properties, too.
                made["properties"] = dict.fromkeys(evaluated, True) | made.get("properties", {})
        if "propertyNames" in given:
            return with_property_names(made, self._names(given["propertyNames"], base), self._define)
        return made

    def _add(self, made: dict[str, Any], keyword: str, value: Any, given: dict[str, Any], base: str) -> None:
        """Adds a keyword of the given schema to the new one, if it constrains."""
        if keyword == "$ref":
            made[keyword] = self._references.name_of(value, base)
        elif keyword in LISTS | MAPS | SCHEMAS:
            made[keyword] = self._with_schemas(keyword, value, base)
        elif keyword in COUNTS:
            self._add_count(made, keyword, value)
        elif keyword in BOUNDS:
            made[keyword] = _within_range(value)
        elif keyword == "discriminator" and "oneOf" in given:
            made[keyword] = self._references.discriminator(value, given["oneOf"])
        elif keyword in VALUES or (keyword == "format" and isinstance(value, str) and value in FORMATS):
            made[keyword] = value

    def _with_schemas(self, keyword: str, value: Any, base: str) -> Any:
        """Returns the value of a keyword with the schemas in it rewritten."""
        if isinstance(value, list) and keyword in LISTS:
            return [self._inner(each, base) for each in value]
        if isinstance(value, dict) and keyword in MAPS:
            names = [as_rust(name) for name in value] if keyword == "patternProperties" else value
            return {name: self._inner(each, base) for name, each in zip(names, value.values(), strict=True)}
        return self._inner(value, base) if keyword in SCHEMAS else value

    def _inner(self, given: Schema, base: str) -> Schema:
        """Returns a schema within another one. Where nothing can match it, as zod writes `never`, it is false."""
        is_never = isinstance(given, dict) and "not" in given and given["not"] in ({}, True)
        return False if is_never else self.schema(given, base)

    def _add_count(self, made: dict[str, Any], keyword: str, value: Any) -> None:
        """Adds a number that counts. 3.0 is 3 in JSON, and a limit that no output reaches is none."""
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if keyword.startswith("min") or not isinstance(value, int) or value < UNENDING:
            made[keyword] = value

    def _evaluated(self, given: Schema, base: str, depth: int = 0) -> list[str] | None:
        """Returns which properties a schema and those beside it tell of, whatever the object; None: not known."""
        if not isinstance(given, dict) or depth > MAX_REFERENCES or not given.keys().isdisjoint(_MAY_EVALUATE):
            return None if depth or not _stands_alone(given) else []
        base = self._references.base_within(given, base)
        _check_shapes(given)
        names, inner = list(given.get("properties", ())), [(each, base) for each in given.get("allOf", ())]
        if "$ref" in given:
            inner.append(self._references.target(self._references.name_of(given["$ref"], base)))
        for schema, start in inner:
            found = self._evaluated(schema, start, depth + 1)
            if found is None:
                return None
            names += found
        return names

    def _refuse_unsupported(self, given: dict[str, Any], evaluated: list[str] | None) -> None:
        """Raises ValueError if a keyword asks for something that cannot be kept to."""
        asked = [name for name in _MEANINGLESS if name in given and not _MEANINGLESS[name](given[name], given)]
        if "unevaluatedProperties" in asked and evaluated is not None:
            asked.remove("unevaluatedProperties")
        if asked:
            raise UnsupportedKeywords(asked)

    def _names(self, names: Schema, base: str) -> Schema:
        """Returns the schema of an object's property names, with what it refers to in place of a reference."""
        for _ in range(MAX_REFERENCES):
            names = self.schema(names, base)
            if isinstance(names, dict) and names.keys() == {"allOf"} and len(names["allOf"]) == 1:
                (names,) = names["allOf"]
            if not isinstance(names, dict) or names.keys() != {"$ref"}:
                return names
            names, base = self._references.target(names["$ref"])
        raise UnsupportedKeywords(["propertyNames"])

    def _define(self, schema: Schema) -> Schema:
        """Returns a reference to a new definition, for a schema that is used several times."""
        if not isinstance(schema, dict) or len(schema) < 2:
            return schema
        self._extra += 1
        self._made[f"values{self._extra}"] = schema
        return {"$ref": f"#/$defs/values{self._extra}"}


def _check_shapes(given: dict[str, Any]) -> None:
    """Raises ValueError for a keyword whose value is of another kind than those that are read here."""
    for keyword, (kinds, shape) in _SHAPES.items():
        if keyword in given and not isinstance(given[keyword], kinds):
            raise ValueError(f'"{keyword}" must be {shape}.')
    for keyword in ("required", "type"):
        if isinstance(names := given.get(keyword), list) and not all(isinstance(name, str) for name in names):
            raise ValueError(f'"{keyword}" must have strings only.')


class UnsupportedKeywords(ValueError):
    """Says which keywords constrain and cannot be kept to."""

    def __init__(self, names: list[str]) -> None:
        shown = ", ".join(f'"{name}"' for name in sorted(names))
        super().__init__(f"These keywords of JSON schema are not supported: {shown}; leave them out.")


def _stands_alone(given: dict[str, Any]) -> bool:
    """Returns whether no other schema evaluates properties of the same object."""
    return not any(keyword in given for keyword in _IN_PLACE)


def _within_range(bound: Any) -> Any:
    """Returns a bound of numbers that llguidance reads. A narrower one lets nothing through that should not come."""
    if isinstance(bound, bool) or not isinstance(bound, int | float):
        return bound
    return max(-FARTHEST, min(bound, FARTHEST)) if abs(bound) > FARTHEST else bound
