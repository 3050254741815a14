"""Reads one call as a model writes it: where its head and its objects end, and what a whole object says."""

import json
import re
from typing import Any

from octavo.server.http.reading import read_json

# {"name": "f", "arguments": {
HEAD = re.compile(
    r'\{\s*(?:"type"\s*:\s*"function"\s*,\s*)?"name"\s*:\s*"(?P<name>[^"\\]*)"\s*,'
    r'\s*"(?:arguments|parameters)"\s*:\s*(?=\{)'
)
NAMED_HEAD = re.compile(r"\s*(?P<name>[\w.-]+)(?:\[CALL_ID\][\w-]*)?(?:\[ARGS\])?\s*")  # f[ARGS]{
NAMED_ALONE = re.compile(r'\s*(?P<name>[\w.-]+)(?:\[CALL_ID\][\w-]*)?\[ARGS\]\s*(?:null|"")?\s*')  # f[ARGS]
BARE = re.compile(r"\[\s*(?=\{)|\{")  # what a call without a marker begins with
MAY_BE_BARE = re.compile(r"\[\s*\Z")
JSON_OBJECT = re.compile(r'\{\s*["}]')

_KEYS = ("name", "type", "function", "arguments", "parameters", "id")  # of a call
_KEY = re.compile(r'\{\s*"(?P<key>[^"\\]*)(?P<rest>.*)', re.DOTALL)
_VALUE = re.compile(r'"\s*:\s*"(?P<value>[^"\\]*)(?P<rest>.?)', re.DOTALL)


class Brackets:
    """Finds where a JSON object or array ends; brackets within strings do not count."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def end(self, text: str, start: int) -> int | None:
        """Returns the index after the closing bracket, or None if it is not in text[start:].

        The next call goes on where this text ends.
        """
        for position in range(start, len(text)):
            if self._closes(text[position]):
                return position + 1
        return None

    def _closes(self, character: str) -> bool:
        if self._in_string:
            if self._escaped:
                self._escaped = False
            elif character == "\\":
                self._escaped = True
            elif character == '"':
                self._in_string = False
        elif character == '"':
            self._in_string = True
        elif character in "{[":
            self._depth += 1
        elif character in "}]":
            self._depth -= 1
            return self._depth == 0
        return False


def may_call(text: str, names: frozenset[str]) -> bool:
    """Returns whether an object that begins like this may be a call of a known tool."""
    begun = _KEY.match(text)
    if begun is None:
        return not text[1:].strip()
    key, rest = begun["key"], begun["rest"]
    if not rest:
        return any(each.startswith(key) for each in _KEYS)
    value = _VALUE.match(rest)
    if key not in _KEYS or value is None or key not in ("name", "type"):
        return key in _KEYS
    known = names if key == "name" else ("function",)
    return value["value"] in known if value["rest"] else any(each.startswith(value["value"]) for each in known)


def whole_call(written: str, names: frozenset[str], strict: bool) -> tuple[str, str] | None:
    """Returns name and arguments, or None if the object is no call of a known tool.

    Its keys may have any order, and the call may be the value of "function". If `strict`, it has no other keys.
    """
    call = _loaded(written)
    if not isinstance(call, dict) or (strict and not call.keys() <= set(_KEYS)):
        return None
    if isinstance(call.get("function"), dict):
        call = call["function"]
    name = call.get("name")
    arguments = _arguments_of(call) if isinstance(name, str) and name in names else None
    return None if not isinstance(name, str) or arguments is None else (name, arguments)


def _loaded(text: str) -> Any:
    """Returns the value, or None if the text is not JSON."""
    try:
        return read_json(text)
    except ValueError:
        return None


def _arguments_of(call: dict[str, Any]) -> str | None:
    """Returns the arguments as JSON text, which some models put into a string; None if they are no object.

    Null, nothing and empty text are an empty object.
    """
    arguments = call.get("arguments", call.get("parameters"))
    if arguments is None or (isinstance(arguments, str) and arguments.strip() in ("", "null")):
        return "{}"
    if isinstance(arguments, str) and isinstance(_loaded(arguments), dict):
        return arguments
    return json.dumps(arguments, ensure_ascii=False) if isinstance(arguments, dict) else None
