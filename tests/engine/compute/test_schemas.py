"""Schemas as clients write them are kept to, or refused by name for what really constrains."""

import json
from typing import Any

import jsonschema
import pytest

from octavo.engine.api import Grammar
from octavo.engine.compute.compiler import Compiler, GrammarError
from octavo.engine.compute.schemas import rewritten
from tests.engine.compute.following import sampled, takes
from tests.server.vocab import EOS, byte_level

STRING, NULL, INTEGER = {"type": "string", "maxLength": 3}, {"type": "null"}, {"type": "integer"}
# zod writes this pattern.
EMAIL = r"^(?!\.)(?!.*\.\.)([A-Za-z0-9_'+\-\.]*)[A-Za-z0-9_+-]@([A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$"


@pytest.fixture(scope="module")
def compiler(tmp_path_factory) -> Compiler:
    path = tmp_path_factory.mktemp("schemas") / "tokenizer.json"
    byte_level().backend.save(str(path))
    return Compiler(path, (EOS,))


def grammar(schema: Any) -> Grammar:
    return Grammar("json", json.dumps(schema))


def ref(name: str, within: str = "$defs", **beside: Any) -> dict[str, Any]:
    return {"$ref": f"#/{within}/{name}", **beside}


def obj(properties: dict[str, Any], *required: str, **beside: Any) -> dict[str, Any]:
    shape = {"type": "object", "properties": properties, "additionalProperties": False}
    return {**shape, **({"required": list(required)} if required else {}), **beside}


CAT, DOG = (
    obj({"kind": {"const": kind, "default": kind, "title": "Kind", "type": "string"}}) for kind in ("cat", "dog")
)
OPEN_A = {"type": "object", "properties": {"a": INTEGER}, "required": ["a"]}
OPEN_B = {"type": "object", "properties": {"b": NULL}}
TAGGED_CAT, TAGGED_DOG = CAT | {"required": ["kind"]}, DOG | {"required": ["kind"]}
PETS = {"cat": TAGGED_CAT, "dog": TAGGED_DOG, "pair": {"type": "array", "items": INTEGER, "maxItems": 2}}
BY_KIND = {"propertyName": "kind", "mapping": {"cat": "#/$defs/cat", "dog": "#/$defs/dog"}}
OPTIONAL = {"cat": CAT, "dog": DOG}
NUMBER, SUM = (
    obj({"t": {"const": "num"}, "v": INTEGER}),
    obj({"t": {"const": "sum"}, "l": ref("e"), "r": ref("e")}, "l", "r"),
)
COLOUR = {"enum": ["red", "blue"], "title": "Colour", "type": "string"}


@pytest.mark.parametrize(
    "schema",
    [
        {"$defs": PETS, "oneOf": [ref("cat"), ref("dog")]},
        {"$defs": PETS, "oneOf": [ref("cat"), ref("dog")], "discriminator": {"propertyName": "kind"}},
        {"$defs": PETS, "oneOf": [ref("cat"), {"type": "null"}]},
        {"$defs": PETS, "oneOf": [INTEGER, ref("pair")]},
        {"$defs": PETS, "oneOf": [{"allOf": [ref("cat")], "description": "x"}, ref("dog", title="y"), ref("pair")]},
        {"definitions": PETS, "oneOf": [ref("cat", "definitions"), ref("dog", "definitions")]},
        {"$defs": OPTIONAL, "oneOf": [ref("cat"), ref("dog")], "discriminator": BY_KIND},
        {"$defs": OPTIONAL, "oneOf": [ref("cat"), ref("dog")]},
        {
            "$defs": {"a": ref("b"), "b": NULL, "c": ref("d", description="x"), "d": STRING},
            "oneOf": [ref("a"), ref("c")],
        },
        {"$defs": {"u": {"oneOf": [ref("cat"), ref("dog")]}, **PETS}, "oneOf": [ref("u"), NULL]},
        {"$defs": {"e": {"oneOf": [ref("num"), ref("sum")]}, "num": NUMBER, "sum": SUM}, "$ref": "#/$defs/e"},
        {
            "definitions": {"E": {"enum": ["a"]}, "B": {"enum": [""]}, "N": {"enum": [None]}},
            "oneOf": [ref("E", "definitions"), ref("B", "definitions"), ref("N", "definitions")],
            "nullable": True,
        },
        {"oneOf": [{"type": "integer", "maximum": 0}, {"type": "integer", "minimum": 1, "maximum": 9}]},
        {"oneOf": [obj({"a": INTEGER}, "a"), obj({"b": INTEGER}, "b")]},
        {
            "type": "object",
            "required": ["t"],
            "properties": {"t": STRING},
            "additionalProperties": False,
            "oneOf": [{"properties": {"t": {"const": "a"}}}, {"properties": {"t": {"const": "b"}}}],
        },
        {
            "$defs": {"kind": {"const": "a"}},
            "oneOf": [obj({"k": {"allOf": [ref("kind")]}}, "k"), obj({"k": {"const": "b"}}, "k")],
        },
        {
            "type": "object",
            "propertyNames": {"type": "string", "maxLength": 3},
            "additionalProperties": INTEGER,
            "maxProperties": 2,
        },
        {"type": "object", "propertyNames": {"enum": ["a", "b"]}, "additionalProperties": INTEGER, "required": ["a"]},
        {"$defs": {"c": COLOUR}, "type": "object", "propertyNames": ref("c"), "additionalProperties": INTEGER},
        {
            "type": "object",
            "propertyNames": {"pattern": "^[a-z]{2}$"},
            "additionalProperties": INTEGER,
            "maxProperties": 2,
        },
        {"type": "string", "format": "email", "pattern": EMAIL},
        obj({"a": INTEGER, "never": {"not": {}}}, "a"),
        {"type": "object", "properties": {"a": INTEGER}, "required": ["a"], "additionalProperties": {"not": {}}},
        {"type": "array", "prefixItems": [INTEGER], "items": {"not": {}}},
        {"type": "array", "items": INTEGER, "maxItems": 1, "uniqueItems": True},
        {"$id": "http://x.org/s", "$ref": "http://x.org/s#/$defs/a", "$defs": {"a": INTEGER}},
        {"$ref": "#a", "$defs": {"x": {"$anchor": "a", **INTEGER}}},
        {"components": {"schemas": {"A/b c": INTEGER}}, "$ref": "#/components/schemas/A~1b%20c"},
        {"type": "string", "minLength": 1.0, "maxLength": 2.0},
        obj({"a": INTEGER}, "a", unevaluatedProperties=False),
        {"allOf": [OPEN_A, OPEN_B], "unevaluatedProperties": False},
        {"$defs": {"a": OPEN_A}, "$ref": "#/$defs/a", "properties": {"b": NULL}, "unevaluatedProperties": False},
        obj({"x": {"allOf": [{"allOf": [OPEN_A]}, OPEN_B], "unevaluatedProperties": False}}, "x"),
        {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1},
        {"type": "number", "minimum": -3.4028234663852886e38, "maximum": 3.4028234663852886e38},
        {"type": "number", "exclusiveMinimum": -(2**63), "exclusiveMaximum": 1.7976931348623157e308},
        True,
    ],
)
def test_outputs_validate(compiler: Compiler, schema: Any) -> None:
    compiler.try_out(grammar(schema))
    for seed in range(8):
        jsonschema.Draft202012Validator(schema).validate(json.loads(sampled(compiler, grammar(schema), seed)))


PET = {
    "type": "object",
    "properties": {"petType": {"type": "string"}},
    "required": ["petType"],
    "additionalProperties": False,
}
A_PET = {"allOf": [ref("Pet", "components/schemas")]}
PETSTORE = {"components": {"schemas": {"Pet": PET, "Cat": A_PET, "Dog": A_PET}}}
EITHER = {"oneOf": [ref("Cat", "components/schemas"), ref("Dog", "components/schemas")]}


@pytest.mark.parametrize(
    ("schema", "taken", "refused"),
    [
        (
            PETSTORE | {"oneOf": EITHER["oneOf"], "discriminator": {"propertyName": "petType"}},
            [{"petType": "Cat"}],
            [{}],
        ),
        (
            {"$defs": OPTIONAL, "oneOf": [ref("cat"), ref("dog")]},
            [{"kind": "cat"}, {"kind": "dog"}],
            [{}, {"kind": "x"}],
        ),
        (
            {"type": "object", "propertyNames": {"type": "string"}, "additionalProperties": INTEGER},
            [{}, {"x": 1}],
            [{"x": "y"}],
        ),
        ({"type": "object", "propertyNames": True}, [{"x": 1}], [5]),
        ({"type": "object", "propertyNames": {}}, [{"x": 1}], [5]),
        ({"type": "object", "propertyNames": {"format": "uuid4"}}, [{"x": 1}], [5]),
        ({"type": "object", "propertyNames": {"enum": ["a"]}}, [{"a": 1}, {}], [{"b": 1}]),
        ({"type": "object", "propertyNames": {"minLength": 2}}, [{"ab": 1}], [{"a": 1}]),
        ({"type": "object", "propertyNames": {"format": "date"}}, [{"2024-02-28": 1}], [{"2024-13-01": 1}, {"a": 1}]),
        ({"type": "object", "propertyNames": {"format": "ipv4"}}, [{"10.0.255.1": 1}], [{"10.0.256.1": 1}]),
        (
            {"type": "object", "propertyNames": {"format": "uuid"}},
            [{"6f9619ff-8b86-d011-b42d-00c04fc964ff": 1}],
            [{"6f9619ff": 1}],
        ),
        *(
            ({"type": "string", "format": each}, ["any é"], [5])
            for each in ("path", "binary", "password", "uuid4", "shoe-size")
        ),
        ({"type": "string", "format": "date"}, ["2024-02-29"], ["x"]),
        ({"type": "integer", "format": "int32"}, [5], ["5"]),
        ({"type": "string", "maxLength": 9007199254740991}, ["x"], [5]),
        ({"type": "integer", "minimum": -9007199254740991, "maximum": 9007199254740991}, [5], ["x"]),
        (
            obj({"n": ref("n", nullable=True), "v": INTEGER}, "v", **{"$defs": {"n": ref("n2"), "n2": STRING}}),
            [{"n": "a", "v": 1}],
            [{}],
        ),
        (
            {
                "$defs": {
                    "n": obj(
                        {
                            "next": ref(
                                "n", nullable=True, deprecated=True, example={}, xml={}, externalDocs={}, title="t"
                            )
                        }
                    )
                },
                "$ref": "#/$defs/n",
            },
            [{"next": {"next": {}}}],
            [{"next": 1}],
        ),
        (
            {
                **INTEGER,
                "title": "t",
                "description": "d",
                "examples": [1],
                "default": 1,
                "readOnly": True,
                "$comment": "c",
                "$schema": "http://json-schema.org/schema#",
                "x-internal": {"not": {}},
                "contentEncoding": "base64",
                "contentMediaType": "text/plain",
                "if": {},
                "minContains": 2,
                "uniqueItems": False,
            },
            [5],
            ["5"],
        ),
        ({"type": "string", "const": "a", "contentEncoding": "base64"}, ["a"], ["b"]),
        ({"enum": [{"id": "x", "$id": "y", "$anchor": "z"}]}, [{"id": "x", "$id": "y", "$anchor": "z"}], [{}]),
        (obj({"id": STRING, "$id": STRING}, id="annotation"), [{"id": "a", "$id": "b"}], [{"id": 1}]),
    ],
)
def test_what_a_schema_takes(compiler: Compiler, schema: Any, taken: list[Any], refused: list[Any]) -> None:
    for value in taken:
        assert takes(compiler, grammar(schema), json.dumps(value, ensure_ascii=False)), value
    for value in refused:
        assert not takes(compiler, grammar(schema), json.dumps(value, ensure_ascii=False)), value


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        (PETSTORE | EITHER, "'oneOf' is supported only where"),
        ({"$defs": PETS, "oneOf": [ref("cat"), ref("cat")]}, "'oneOf' is supported only where"),
        (
            {"$defs": {"a": STRING}, "oneOf": [ref("a"), {"type": ["string", "null"]}]},
            "'oneOf' is supported only where",
        ),
        ({"type": "object", "propertyNames": {"format": "email"}}, "propertyNames"),
        ({"type": "object", "propertyNames": {"pattern": "a", "maxLength": 3}}, "propertyNames"),
        ({"type": "object", "propertyNames": {"pattern": "^a"}, "properties": {"b": {}}}, "propertyNames"),
        ({"type": "object", "propertyNames": False}, "propertyNames"),
        ({"type": "object", "propertyNames": {"type": "integer"}}, "propertyNames"),
        ({"type": "array", "uniqueItems": True}, '"uniqueItems"'),
        ({"type": "object", "dependentRequired": {"a": ["b"]}}, '"dependentRequired"'),
        ({"allOf": [obj({})], "unevaluatedProperties": False}, '"unevaluatedProperties"'),
        ({"$dynamicRef": "#x"}, '"$dynamicRef"'),
        ({"type": "string", "pattern": "^(?!a)b"}, "look-ahead"),
        ({"$ref": "#/$defs/missing"}, "refers to nothing"),
        ({"$ref": 5}, '"$ref" must be a string'),
        ({"$ref": "http://["}, "cannot be used"),
        ({"$ref": "#/$defs/a", "$defs": True}, "refers to nothing"),
        ({"anyOf": [OPEN_A], "unevaluatedProperties": False}, '"unevaluatedProperties"'),
        ({"allOf": [{"$ref": "#"}], "unevaluatedProperties": False}, '"unevaluatedProperties"'),
        (False, "Unsatisfiable schema"),
        ({"type": "object", "propertyNames": {"enum": ["a"]}, "required": ["b"]}, "Unsatisfiable schema"),
        ({"type": 5}, '"type" must be a string or an array'),
        ({"type": [5]}, '"type" must have strings only'),
        ({"propertyNames": {"type": None}}, '"type" must be'),
        ({"propertyNames": {"allOf": 5}}, '"allOf" must be an array'),
        ({"propertyNames": {"enum": ["a"]}, "properties": []}, '"properties" must be an object'),
        ({"propertyNames": {"enum": ["a"]}, "required": 5}, '"required" must be an array'),
        ({"propertyNames": {"enum": ["a"]}, "required": [[]]}, '"required" must have strings only'),
        ({"allOf": 5, "unevaluatedProperties": False}, '"allOf" must be an array'),
    ],
)
def test_what_cannot_be_kept_to_is_refused_by_name(compiler: Compiler, schema: Any, words: str) -> None:
    with pytest.raises(GrammarError) as refusal:
        compiler.compile(grammar(schema))
    assert words in str(refusal.value)


def test_schemas_within_a_grammar_are_rewritten_too(compiler: Compiler) -> None:
    schema = json.dumps({"$defs": PETS, "oneOf": [ref("cat"), NULL]})
    lark = f'// %json {{"not": 5}}\nstart: "%json {{}}" inner /%json/\ninner: %json {schema}\n'
    assert takes(compiler, Grammar("grammar", lark), '%json {}{"kind":"cat"}%json')
    assert takes(compiler, Grammar("grammar", lark), "%json {}null%json")


def test_many_tagged_schemas_are_told_apart() -> None:
    for required in (["kind"], []):
        kinds = {f"k{n}": obj({"kind": {"const": f"k{n}"}}, *required) for n in range(1000)}
        made = rewritten({"$defs": kinds, "oneOf": [ref(name) for name in kinds]})
        assert "oneOf" not in made and len(made["anyOf"]) == 1000
    made = rewritten({"oneOf": [{"const": n} for n in range(3000)]})
    assert len(made["anyOf"]) == 3000


def test_a_schema_that_would_take_long_to_compare_is_left_to_the_library() -> None:
    kinds = {f"k{n}": obj({f"p{m}": STRING for m in range(30)}, *(f"p{m}" for m in range(30))) for n in range(60)}
    assert "oneOf" in rewritten({"$defs": kinds, "oneOf": [ref(name) for name in kinds]})
