"""Writes pieces of grammars in the language of llguidance."""

import json
from collections.abc import Mapping

from octavo.server.http.reading import read_json

# Models were trained to write JSON with these separators. Only the values are left to them.
_SPACING = {"x-guidance": {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}}


def json_value(schema: str) -> str:
    """Returns an expression that matches what validates against the schema.

    A schema that is not JSON is passed on as it is; the grammar is then refused when it is tried.
    """
    try:
        value = read_json(schema)
    except ValueError:
        value = None
    return "%json " + (json.dumps({**value, **_SPACING}) if isinstance(value, dict) else schema)


def literal(text: str, tokens: Mapping[str, int]) -> str:
    """Returns an expression that matches the text, as a token if it is one; `tokens` has their ids."""
    return f"<[{tokens[text]}]>" if text in tokens else quoted(text)


def quoted(text: str) -> str:
    return json.dumps(text)
