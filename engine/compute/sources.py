"""Turns a grammar into the form that llguidance reads."""

import json
import re

from octavo.engine.api import Grammar
from octavo.engine.compute.gbnf import is_gbnf, to_lark
from octavo.engine.compute.patterns import as_rust
from octavo.engine.compute.schemas import rewritten

# These blanks may stand between the tokens of JSON. They are bounded, since some models write blanks until max_tokens.
JSON_BLANKS = r"[ \t\n\r]{1,40}"
ASCII_CLASSES = "dw"  # \d and \w match ASCII only, as in JavaScript and so in the patterns of JSON schemas
# Text in which %json means nothing, or %json itself.
_LARK = re.compile(r'"(?:\\.|[^"\\\n])*"|/(?:\\.|[^/\\\n])+/|//[^\n]*|#[^\n]*|%json\s*(?=\{)')


def source(grammar: Grammar) -> str:
    """Returns the grammar as llguidance reads it. Raises ValueError or RecursionError."""
    bound = _bound(grammar)
    if not grammar.before:
        return bound
    answer = json.loads(bound)["grammars"][0] if bound.startswith("{") else {"lark_grammar": bound}
    whole = {"lark_grammar": f"start: before @answer\n{grammar.before}"}
    return json.dumps({"grammars": [whole, {**answer, "name": "answer"}]})


def _bound(grammar: Grammar) -> str:
    """Returns the grammar without what stands before it."""
    from llguidance import LLMatcher, regex_to_lark

    match grammar.kind:
        case "json":
            schema = json.dumps(rewritten(json.loads(grammar.text)))
            return LLMatcher.grammar_from_json_schema(schema, defaults={"whitespace_pattern": JSON_BLANKS})
        case "regex":
            return f"start: /{regex_to_lark(as_rust(grammar.text), ASCII_CLASSES)}/"
        case "choice":  # One terminal: as alternatives of a rule, a thousand choices are too many.
            return "start: CHOICE\nCHOICE: " + " | ".join(json.dumps(choice) for choice in json.loads(grammar.text))
        case "grammar":
            lark = to_lark(grammar.text) if is_gbnf(grammar.text) else _with_rewritten_schemas(grammar.text)
            return LLMatcher.grammar_from_lark(lark)


def _with_rewritten_schemas(lark: str) -> str:
    """Returns a grammar of Lark in which each %json has its schema as llguidance takes it."""
    parts, end = [], 0
    decoder = json.JSONDecoder()
    while (found := _LARK.search(lark, end)) is not None:
        parts.append(lark[end : found.end()])
        end = found.end()
        if found[0].startswith("%json"):
            schema, end = decoder.raw_decode(lark, end)
            parts.append(json.dumps(rewritten(schema)))
    return "".join([*parts, lark[end:]])
