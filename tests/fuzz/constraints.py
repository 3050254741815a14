"""Makes what answers may be bound to: schemas, regular expressions, choices and grammars, also hostile ones."""

import json
from collections.abc import Callable
from random import Random
from typing import Any

from tests.engine.compute.random_schemas import random_schema
from tests.fuzz.values import odd_text

Fields = dict[str, Any]
PIECES = (
    "a", "[a-z]", "\\d", ".", "é", "(?:yes|no)", "\\w+", "[^\\n]*", "\\u00e9", "😀", "x{3}", "^", "$", "\\b", "(?=a)",
    "\\",
)  # fmt: skip
REPEATS = ("", "", "", "*", "+", "?", "{2}", "{1,9}", "{500}", "{1,1000}", "{0,100000}", "*?", "{,3}")
HOSTILE = (
    "(?:a|aa)+{500}", "(?:(?:a{1,100}){1,100}){1,100}", "(a*)*b", "(?:a?){300}a{300}", "[a-z]{1,5000}[0-9]{5000}",
)  # fmt: skip
LARK = (
    'start: "a" | "b"', '?start: x\nx: "a"', "start[capture]: /[a-z]+/", 'start: start | "a"', 'start: "(" start? ")"',
    "start: A*\nA: /(?:a|aa)+/", '%ignore /\\s+/\nstart: "a" start?', "start: x", "start:", "// only words",
    'start: x{400}\nx: "a" | "b"',
)  # fmt: skip
GBNF = (
    'root ::= "a" | "b"', 'root ::= "\\u00e9" [\\x41-\\x5a]*', "root ::= root", 'root ::= ("a" | "aa"){1,400}',
    'root ::= "[" (root ("," root)*)? "]"', "root ::= [^\\n]+", 'root ::= x', 'root ::= "\\ud83d"',
)  # fmt: skip
FORMATS = ("date-time", "uuid", "uuid4", "path", "binary", "email", "nonsense", "ipv4", "uri", "time")


def constraint(random: Random) -> Fields:
    """Returns fields of a request to chat or completions."""
    makers: tuple[Callable[[Random], Fields], ...] = (_schema, _schema, _regex, _choice, _grammar, _bare)
    return random.choice(makers)(random)


def schema(random: Random) -> Fields:
    """Returns a schema; some have what OpenAPI documents and pydantic write beside the constraint itself."""
    made: Fields = random_schema(random)
    leaf, name = {"$ref": "#/$defs/leaf"}, random.choice(("p", odd_text(random)[:20]))
    added: dict[str, Any] = random.choice(
        (
            {},
            {"oneOf": [leaf, {"type": "null"}]},
            {"anyOf": [leaf, leaf]},
            {"type": "string", "format": random.choice(FORMATS)},
            {"type": "object", "propertyNames": {"type": "string"}},
            {"type": "array", "items": leaf, "minItems": random.choice((0, 3, 10**6))},
            {"type": "string", "pattern": _pattern(random)},
            {"type": "integer", "minimum": -(10**300)},
            {"$ref": "#/$defs/missing"},
            {"not": {}},
            {"enum": [f"value {index}" for index in range(random.choice((1, 1000, 3000)))]},
        )
    )
    made["properties"][name] = added
    return made


def _schema(random: Random) -> Fields:
    value = schema(random)
    forms: tuple[Fields, ...] = (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": value}}},
        {"response_format": {"type": "json_object", "schema": value}},
        {"structured_outputs": {"json": value}},
        {"json_schema": value},
    )
    return random.choice(forms)


def _regex(random: Random) -> Fields:
    return {"structured_outputs": {"regex": _pattern(random)}}


def _pattern(random: Random) -> str:
    if random.random() < 0.2:
        return random.choice(HOSTILE)
    return "".join(random.choice(PIECES) + random.choice(REPEATS) for _ in range(random.randint(1, 8)))


def _choice(random: Random) -> Fields:
    count = random.choice((1, 2, 50, 1000, 3000))
    return {"structured_outputs": {"choice": [f"choice {index} {odd_text(random)[:9]}" for index in range(count)]}}


def _grammar(random: Random) -> Fields:
    text = random.choice((*LARK, *GBNF)) + random.choice(("", "", "\n", odd_text(random)[:20]))
    return random.choice(({"structured_outputs": {"grammar": text}}, {"grammar": text}))


def _bare(random: Random) -> Fields:
    return random.choice(
        (
            {"response_format": {"type": "json_object"}},
            {"response_format": {"type": random.choice(("text", "xml", ""))}},
            {"response_format": {"type": "json_schema", "json_schema": json.dumps({"type": "object"})}},
            {"guided_regex": "[ab]"},
        )
    )
