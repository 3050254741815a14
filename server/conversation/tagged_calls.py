"""Reads calls whose arguments are written between tags, as Qwen3-Coder writes them.

    <function=NAME>
    <parameter=KEY>
    VALUE
    </parameter>
    </function>

A value is plain text, without quotes or escapes. The schema of the tool says what it is in JSON.
"""

import json
import re
from collections.abc import Iterable

from octavo.server.conversation.parameter_types import Schema, Types, as_json, is_text, properties_of, types_of
from octavo.server.text.call_formats import END_OF_CALL, END_OF_FUNCTION, END_OF_PARAMETER, FUNCTION, PARAMETER

FUNCTION_HEAD = re.compile(rf"{FUNCTION}(?P<name>[\w.-]+)>\s*(?={PARAMETER}|{END_OF_FUNCTION}|{END_OF_CALL})")
_AFTER_HEAD = (PARAMETER, END_OF_FUNCTION, END_OF_CALL)
_END_OF_KEY = re.compile(r"[>\n]")
_MAY_END = re.compile(r"\n?<|\n\Z")  # where a value may end
_REACH = 256  # characters; a key is no longer, nor is the space between tags
_WINDOW = 3 * _REACH  # characters; enough to see whether a value ends


def may_begin_function(text: str, names: Iterable[str]) -> bool:
    """Returns whether the text may yet become the head of a call of a known tool, as FUNCTION_HEAD describes it."""
    if not text.startswith(FUNCTION):
        return FUNCTION.startswith(text)
    name, end, rest = text[len(FUNCTION) :].partition(">")
    if not end:
        return any(each.startswith(name) for each in names)
    return name in names and _may_begin(rest.lstrip(), _AFTER_HEAD)


class TaggedArguments:
    """Turns the parameters of one call into the JSON text of its arguments, while they arrive.

    Values that are strings are passed on as they come; others once they are complete. A value ends where its tag is
    closed and another tag follows, so that </parameter> alone may be part of a value. Models forget to close it: a
    value ends, too, before the end of the whole call, and before a line that begins another declared parameter.
    """

    def __init__(self, tool: Schema) -> None:
        """`tool` is the schema of the call's arguments."""
        self.done = False  # the end of the function has been read
        self._tool = tool
        self._awaited = {name for name in properties_of(tool) if len(name) <= _REACH}  # have no value yet
        self._separator = "{"  # precedes the next key
        self._key: str | None = None  # of the value that is being read
        self._types: Types = ()  # of that value
        self._is_text = False  # that value is passed on as it comes
        self._pieces: list[str] = []  # of that value, if it is not
        self._begun = False  # the line break before that value has been read

    def read(self, text: str) -> tuple[str, str]:
        """Returns the JSON text that has become certain, and the text that is left to be read with what follows."""
        fragments: list[str] = []
        while not self.done and (step := self._outside(text) if self._key is None else self._value(text)) is not None:
            fragment, text = step
            fragments.append(fragment)
        return "".join(fragments), text

    def _outside(self, text: str) -> tuple[str, str] | None:
        """Consumes the head of a parameter, or the end of the function; END_OF_CALL is left to the caller."""
        text = text.lstrip()
        if text.startswith((END_OF_FUNCTION, END_OF_CALL)):
            self.done = True
            return "{}" if self._separator == "{" else "}", text.removeprefix(END_OF_FUNCTION)
        start = len(PARAMETER)
        end = _END_OF_KEY.search(text, start, start + _REACH)
        if not text.startswith(PARAMETER) or (end is None and len(text) < start + _REACH):
            return None
        self._key = key = text[start : start + _REACH if end is None else end.start()]
        self._awaited.discard(key)
        self._types = types_of(properties_of(self._tool).get(key), self._tool)
        self._is_text, self._begun, self._pieces = is_text(self._types), False, []
        fragment = f"{self._separator}{json.dumps(key, ensure_ascii=False)}: " + '"' * self._is_text
        self._separator = ", "
        return fragment, text[start + _REACH if end is None else end.end() :]

    def _value(self, text: str) -> tuple[str, str] | None:
        """Consumes as much as is surely part of a value, and its end."""
        if not text:
            return None
        if not self._begun:
            self._begun = True
            return "", text.removeprefix("\n")
        place, ends = self._end(text)
        if ends:
            fragment = self._shown(text[:place]) + self._closed()
            return fragment, text[place:].removeprefix("\n").removeprefix(END_OF_PARAMETER)
        return (self._shown(text[:place]), text[place:]) if place else None

    def _shown(self, piece: str) -> str:
        if self._is_text:
            return json.dumps(piece, ensure_ascii=False)[1:-1]
        self._pieces.append(piece)
        return ""

    def _closed(self) -> str:
        self._key = None
        return '"' if self._is_text else as_json("".join(self._pieces), self._types)

    def _end(self, text: str) -> tuple[int, bool]:
        """Returns where the value ends, and True; or else where it may end, and False."""
        for found in _MAY_END.finditer(text):
            ends = self._ends(text[found.start() : found.start() + _WINDOW])
            if ends is not False:
                return found.start(), ends is True
        return len(text), False

    def _ends(self, text: str) -> bool | None:
        """Returns whether a value ends where this text begins; None if that is uncertain until more has arrived."""
        tag = text.removeprefix("\n")
        found = (
            _closes(tag, END_OF_PARAMETER, _AFTER_HEAD),
            _closes(tag, END_OF_FUNCTION, (END_OF_CALL,)),
            tag != text and self._opens(tag),
        )
        return True if True in found else None if None in found else False

    def _opens(self, tag: str) -> bool | None:
        """Returns whether the tag begins a declared parameter that has no value yet."""
        if not tag.startswith(PARAMETER):
            return None if PARAMETER.startswith(tag) else False
        name, end, _ = tag[len(PARAMETER) :].partition(">")
        if end:
            return name in self._awaited
        return None if any(each.startswith(name) for each in self._awaited) else False


def _closes(text: str, tag: str, following: tuple[str, ...]) -> bool | None:
    """Returns whether the text begins with the tag and then, after some space, one of the following ones."""
    if not text.startswith(tag):
        return None if tag.startswith(text) else False
    rest = text[len(tag) :].lstrip()
    if len(text) - len(tag) - len(rest) > _REACH:
        return False
    if rest.startswith(following):
        return True
    return None if _may_begin(rest, following) else False


def _may_begin(text: str, tags: tuple[str, ...]) -> bool:
    """Returns whether the text is one of the tags, begins with one, or is the beginning of one."""
    return text.startswith(tags) or any(tag.startswith(text) for tag in tags)
