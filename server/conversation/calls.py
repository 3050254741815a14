"""Finds calls of tools in a model's text, while it arrives; whatever is not a call stays text."""

import json
import re
import secrets
import string
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from octavo.server.conversation.parts import Part, Text, ToolCallArguments, ToolCallStart
from octavo.server.http.reading import read_json
from octavo.server.text.call_formats import CALL, END_OF_CALL
from octavo.server.text.template import ChatTemplate

_LETTERS = string.ascii_letters + string.digits
_REACH = 256  # characters; if the head of a call does not end within them, the call is read once it is complete
# {"name": "f", "arguments": {
_HEAD = re.compile(r'\{\s*"name"\s*:\s*"(?P<name>[^"\\]*)"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)')
_NAMED_HEAD = re.compile(r"\s*(?P<name>[\w.-]+)(?:\[CALL_ID\][\w-]*)?\[ARGS\]\s*")  # f[ARGS]{


@dataclass(frozen=True, slots=True)
class CallFormat:
    """Describes how a model writes calls: a marker, then {"name": ..., "arguments": ...}, or an array of such objects.

    Mistral's newer models write name[ARGS]{...} after each marker; the parser understands that in every format.
    """

    marker: str
    end: str = ""  # the marker after a call; empty: there is none
    named: bool = False  # the model writes name[ARGS]{...}

    def tokens(self) -> tuple[str, ...]:
        """Returns texts that may be special tokens of the vocabulary, which decoding would hide."""
        return (self.marker, self.end, "[ARGS]", "[CALL_ID]")


JSON = CallFormat(CALL, END_OF_CALL)
MISTRAL = CallFormat("[TOOL_CALLS]")
MISTRAL_NAMED = CallFormat("[TOOL_CALLS]", named=True)


def format_of(template: ChatTemplate) -> CallFormat:
    """Returns the format in which the template writes earlier calls; JSON for a template that takes no tools."""
    if not template.capabilities.tools or MISTRAL.marker not in template.source:
        return JSON
    return MISTRAL_NAMED if "[ARGS]" in template.source else MISTRAL


def new_id(short: bool) -> Callable[[], str]:
    """Returns what makes ids for calls: like OpenAI's or, if short, as Mistral's templates demand them."""
    return (lambda: _random(9)) if short else (lambda: "call_" + _random(24))


def _random(length: int) -> str:
    return "".join(secrets.choice(_LETTERS) for _ in range(length))


class _Brackets:
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


class CallParser:
    """Implements parts.PartParser. Each state consumes from the front of the held text, or waits for more.

        text <tool_call> {"name": "f", "arguments":  {"x": 1}    }   </tool_call>  text
        _text       |  _head                          | _arguments | _tail | _close  | _text

    Space before a marker, and after a call, belongs to neither text nor call. Once a call has begun, its arguments
    are passed on as the model writes them. Before that, whatever is not the head of a call of a known tool is text.
    """

    def __init__(
        self, format: CallFormat, names: frozenset[str], new_id: Callable[[], str], parallel: bool = True
    ) -> None:
        """Calls after the first are passed on only if `parallel`; new_id makes the id of each call."""
        self._format = format
        self._names = names
        self._new_id = new_id
        self._most = None if parallel else 1
        self._state: Callable[[], list[Part] | None] = self._text
        self._held = ""  # received, not consumed yet
        self._consumed = ""  # consumed as the beginning of a call; becomes text if it turns out to be none
        self._seen = 0  # characters of `_held` that `_brackets` has seen
        self._brackets = _Brackets()
        self._calls = 0
        self._in_array = False

    def push(self, text: str) -> list[Part]:
        self._held += text
        parts: list[Part] = []
        while (found := self._state()) is not None:
            parts += found
        return [part for part in parts if self._is_wanted(part)]

    def flush(self) -> list[Part]:
        """Returns what is left as text. Space at the end is dropped after a call, and so is an unfinished call."""
        left, self._consumed, self._held = self._consumed + self._held, "", ""
        if self._state in (self._arguments, self._tail, self._close):
            return []
        if self._calls:
            left = left.rstrip()
        return [Text(left)] if left else []

    def _is_wanted(self, part: Part) -> bool:
        return isinstance(part, Text) or self._most is None or part.index < self._most

    def _text(self) -> list[Part] | None:
        """Passes on text up to a marker, without the space before it; holds back what may become a marker."""
        before, marker, after = self._held.partition(self._format.marker)
        if marker:
            shown = before.rstrip()
            self._consumed, self._held, self._in_array = before[len(shown) :] + marker, after, False
            self._begin()
            return [Text(shown)] if shown else []
        shown = before[: len(before) - _overlap(before, self._format.marker)].rstrip()
        self._held = before[len(shown) :]
        return [Text(shown)] if shown else None

    def _begin(self) -> None:
        self._state, self._seen, self._brackets = self._head, 0, _Brackets()

    def _head(self) -> list[Part] | None:
        """Consumes from a marker, or a comma in an array, to where the arguments begin."""
        self._skip_space()
        if not self._held:
            return None
        if self._held[0] == "[" and not self._in_array:
            self._in_array = True
            self._consumed, self._held = self._consumed + "[", self._held[1:]
            return []
        return self._object() if self._held[0] == "{" else self._named()

    def _object(self) -> list[Part] | None:
        head = _HEAD.match(self._held[:_REACH]) if self._seen < _REACH else None
        if head is not None and head["name"] in self._names:
            self._held = self._held[head.end() :]
            return self._start(head["name"], self._tail)
        end = self._brackets.end(self._held, self._seen)
        if end is None:
            self._seen = len(self._held)
            return None
        written, self._held = self._held[:end], self._held[end:]
        return self._complete(written)

    def _complete(self, written: str) -> list[Part]:
        """Reads a call from a whole object: its keys may have another order, its arguments may be text."""
        call = _loaded(written)
        name = call.get("name") if isinstance(call, dict) else None
        arguments = _arguments_of(call) if isinstance(name, str) and name in self._names else None
        if not isinstance(name, str) or arguments is None:
            self._held = written[1:] + self._held
            return self._no_call(written[0])
        start = self._start(name, self._close)
        self._state = self._close
        return [*start, ToolCallArguments(self._calls - 1, arguments)]

    def _named(self) -> list[Part] | None:
        """Consumes the head of name[ARGS]{...}."""
        brace = self._held.find("{", 0, _REACH)
        if brace < 0 and len(self._held) < _REACH:
            return None
        head = _NAMED_HEAD.fullmatch(self._held[: max(brace, 0)])
        if head is None or head["name"] not in self._names:
            return self._no_call("")
        self._held = self._held[brace:]
        return self._start(head["name"], self._close)

    def _no_call(self, more: str) -> list[Part]:
        """Passes on as text what was consumed as the beginning of a call."""
        text, self._consumed = self._consumed + more, ""
        self._state, self._in_array = self._text, False
        return [Text(text)] if text else []

    def _start(self, name: str, after: Callable[[], list[Part] | None]) -> list[Part]:
        self._consumed = ""
        self._calls += 1
        self._brackets = _Brackets()
        self._after = after
        self._state = self._arguments
        return [ToolCallStart(self._calls - 1, self._new_id(), name)]

    def _arguments(self) -> list[Part] | None:
        if not self._held:
            return None
        end = self._brackets.end(self._held, 0)
        fragment, self._held = self._held[:end], self._held[len(self._held) if end is None else end :]
        if end is not None:
            self._state = self._after
        return [ToolCallArguments(self._calls - 1, fragment)]

    def _tail(self) -> list[Part] | None:
        """Consumes the rest of the object after its arguments: a brace, perhaps an id before it.

        Some models forget both.
        """
        rest = self._held.lstrip()
        if not rest:
            return None
        brace = rest.find("}", 0, _REACH) if rest[0] in ",}" else -1
        if brace < 0 and rest[0] == "," and len(rest) < _REACH:
            return None
        self._held = rest[brace + 1 :]
        self._state = self._close
        return []

    def _close(self) -> list[Part] | None:
        """Consumes what ends a call, or leads to the next one in an array."""
        rest = self._held.lstrip()
        if rest[:1] == "," and self._in_array:
            self._held = rest[1:]
            self._begin()
            return []
        if rest[:1] == "]" and self._in_array:
            self._held, self._in_array = rest[1:], False
            return []
        if len(rest) < len(self._format.end) and self._format.end.startswith(rest):
            return None
        if self._format.end and rest.startswith(self._format.end):
            self._held = rest[len(self._format.end) :]
        elif not rest:
            return None
        self._state = self._text
        return []

    def _skip_space(self) -> None:
        stripped = self._held.lstrip()
        self._consumed += self._held[: len(self._held) - len(stripped)]
        self._held = stripped


def _overlap(text: str, marker: str) -> int:
    """Returns the number of characters at the end of text that may begin the marker."""
    longest = min(len(text), len(marker) - 1)
    return next((length for length in range(longest, 0, -1) if text.endswith(marker[:length])), 0)


def _loaded(text: str) -> Any:
    """Returns the value, or None if the text is not JSON."""
    try:
        return read_json(text)
    except ValueError:
        return None


def _arguments_of(call: dict[str, Any]) -> str | None:
    """Returns the arguments as JSON text, which some models put into a string; None if they are no object."""
    arguments = call.get("arguments", call.get("parameters", {}))
    if isinstance(arguments, str) and isinstance(_loaded(arguments), dict):
        return arguments
    return json.dumps(arguments, ensure_ascii=False) if isinstance(arguments, dict) else None
