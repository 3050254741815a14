"""Finds calls of tools in a model's text, while it arrives; whatever is not a call stays text."""

import re
import secrets
import string
from collections.abc import Callable, Mapping

from octavo.server.conversation.parameter_types import Schema
from octavo.server.conversation.parts import Part, Reasoning, Stage, Text, ToolCallArguments, ToolCallStart
from octavo.server.conversation.tagged_calls import FUNCTION_HEAD, TaggedArguments, may_begin_function
from octavo.server.conversation.written_calls import (
    BARE,
    HEAD,
    JSON_OBJECT,
    MAY_BE_BARE,
    NAMED_ALONE,
    NAMED_HEAD,
    Brackets,
    may_call,
    whole_call,
)
from octavo.server.text.call_formats import CALL, END_OF_CALL, FUNCTION, JSON, PYTHON_TAG, CallFormat
from octavo.server.text.overlap import overlap
from octavo.server.text.template import ChatTemplate
from octavo.server.text.template_process import ClientTemplate

_LETTERS = string.ascii_letters + string.digits
_REACH = 256  # characters; if the head of a call does not end within them, the call is read once it is complete


def format_of(template: ChatTemplate | ClientTemplate) -> CallFormat:
    """Returns the format in which the template tells the model to call; JSON for a template that takes no tools."""
    format = template.capabilities.call_format
    return format if format is not None and template.capabilities.tools else JSON


def new_id(short: bool) -> Callable[[], str]:
    """Returns what makes ids for calls: like OpenAI's or, if short, as Mistral's templates demand them."""
    return (lambda: _random(9)) if short else (lambda: "call_" + _random(24))


def _random(length: int) -> str:
    return "".join(secrets.choice(_LETTERS) for _ in range(length))


class CallParser:
    """Implements parts.PartParser. Each state consumes from the front of the held text, or waits for more.

        text <tool_call> {"name": "f", "arguments":  {"x": 1}    }   </tool_call>  text
        _text       |  _head                          | _arguments | _tail | _close  | _text

        text <tool_call> <function=f>    <parameter=x> 1 </parameter> </function>   </tool_call>  text
        _text       |  _head       | _tagged                                      | _close  | _text

    Space before a marker, and after a call, belongs to neither text nor call. Once a call has begun, its arguments
    are passed on as the model writes them. Before that, whatever is not the head of a call of a known tool is text.
    The plain format is read beside that of the template, since models fall back to it. Where calls have no marker, an
    object that turns out to be none is text to its end (_skip). Models that write calls as tags may forget the marker.
    """

    stage: Stage = "answer"

    def __init__(
        self, format: CallFormat, tools: Mapping[str, Schema], new_id: Callable[[], str], parallel: bool = True
    ) -> None:
        """`tools` has the schema of the arguments of each tool, by its name.

        Calls after the first are passed on only if `parallel`; new_id makes the id of each call.
        """
        self._ends = {format.marker or PYTHON_TAG: format.end, CALL: END_OF_CALL}  # marker -> what ends its call
        if format.tagged:
            self._ends[FUNCTION] = END_OF_CALL
        opener = "|".join(map(re.escape, self._ends))
        self._opener = re.compile(opener if format.marker else f"{opener}|{BARE.pattern}")
        self._unmarked = not format.marker
        self._tagged_too = format.tagged
        self._tools = tools
        self._names = frozenset(tools)
        self._new_id = new_id
        self._most = None if parallel else 1
        self._state: Callable[[], list[Part] | None] = self._text
        self._held = ""  # received, not consumed yet
        self._consumed = ""  # consumed as the beginning of a call; becomes text if it turns out to be none
        self._seen = 0  # characters of `_held` that `_brackets` has seen
        self._brackets = Brackets()
        self._parameters = TaggedArguments({})  # of a call that is written as tags
        self._calls = 0
        self._in_array = False
        self._marker = ""  # before this call; empty: there is none

    def push(self, text: str) -> list[Part]:
        self._held += text
        parts: list[Part] = []
        while (found := self._state()) is not None:
            parts += found
        return [part for part in parts if self._is_wanted(part)]

    def flush(self) -> list[Part]:
        """Returns what is left as text. Space at the end is dropped after a call, and so is an unfinished call."""
        if self._state == self._head and (alone := self._alone(self._held)) is not None:
            return [part for part in alone if self._is_wanted(part)]
        left, self._consumed, self._held = self._consumed + self._held, "", ""
        if self._state in (self._arguments, self._tagged, self._tail, self._close):
            return []
        if self._calls:
            left = left.rstrip()
        return [Text(left)] if left else []

    def _is_wanted(self, part: Part) -> bool:
        return isinstance(part, Text | Reasoning) or self._most is None or part.index < self._most

    def _text(self) -> list[Part] | None:
        """Passes on text up to a marker, without the space before it; holds back what may become a marker."""
        opener = self._opener.search(self._held)
        if opener is None:
            shown = self._held[: len(self._held) - self._may_open()].rstrip()
            self._held = self._held[len(shown) :]
            return [Text(shown)] if shown else None
        shown = self._held[: opener.start()].rstrip()
        self._marker = opener[0] if opener[0] in self._ends else ""
        self._in_array = opener[0][0] == "[" and not self._marker
        begun = opener.start() if opener[0] in ("{", FUNCTION) else opener.end()
        self._consumed, self._held = self._held[len(shown) : begun], self._held[begun:]
        self._begin()
        return [Text(shown)] if shown else []

    def _may_open(self) -> int:
        """Returns the number of characters at the end of the held text that may begin a marker or a call."""
        bare = MAY_BE_BARE.search(self._held) if self._unmarked else None
        return max(len(bare[0]) if bare else 0, *(overlap(self._held, marker) for marker in self._ends))

    def _begin(self) -> None:
        self._state, self._seen, self._brackets = self._head, 0, Brackets()

    def _head(self) -> list[Part] | None:
        """Consumes from a marker, or a comma in an array, to where the arguments begin."""
        self._skip_space()
        if not self._held:
            return None
        if self._held[0] == "[" and not self._in_array:
            self._in_array = True
            self._consumed, self._held = self._consumed + "[", self._held[1:]
            return []
        if self._held[0] == "<" and self._tagged_too:
            return self._function()
        return self._object() if self._held[0] == "{" else self._named()

    def _object(self) -> list[Part] | None:
        head = HEAD.match(self._held[:_REACH]) if self._seen < _REACH else None
        if head is not None and head["name"] in self._names:
            self._held = self._held[head.end() :]
            return self._start(head["name"], self._tail)
        if not self._marker and not may_call(self._held[:_REACH], self._names):
            return self._no_call("")
        end = self._brackets.end(self._held, self._seen)
        if end is None:
            self._seen = len(self._held)
            return None
        written, self._held = self._held[:end], self._held[end:]
        return self._complete(written)

    def _complete(self, written: str) -> list[Part]:
        """Reads a call from a whole object: its keys may have another order, its arguments may be text."""
        call = whole_call(written, self._names, strict=not self._marker)
        if call is None:
            self._held = written[1:] + self._held if self._marker else written + self._held
            return self._no_call(written[0] if self._marker else "")
        return self._whole(*call)

    def _whole(self, name: str, arguments: str) -> list[Part]:
        start = self._start(name, self._close)
        self._state = self._close
        return [*start, ToolCallArguments(self._calls - 1, arguments)]

    def _named(self) -> list[Part] | None:
        """Consumes the head of name[ARGS]{...}."""
        brace = self._held.find("{", 0, _REACH)
        marker = self._held.find(self._marker, 0, _REACH) if self._marker else -1
        if marker >= 0 and (brace < 0 or marker < brace):
            alone = self._alone(self._held[:marker])
            self._held = self._held[marker:] if alone else self._held
            return alone or self._no_call("")
        if brace < 0 and len(self._held) < _REACH:
            return None
        head = NAMED_HEAD.fullmatch(self._held[: max(brace, 0)])
        if head is None or head["name"] not in self._names:
            return self._no_call("")
        self._held = self._held[brace:]
        return self._start(head["name"], self._close)

    def _function(self) -> list[Part] | None:
        """Consumes the head of a call that is written as tags."""
        head = FUNCTION_HEAD.match(self._held[:_REACH])
        if head is None or head["name"] not in self._names:
            waits = len(self._held) < _REACH and may_begin_function(self._held, self._names)
            return None if waits else self._no_call("")
        self._held = self._held[head.end() :]
        start = self._start(head["name"], self._close)
        self._parameters, self._state = TaggedArguments(self._tools[head["name"]]), self._tagged
        return start

    def _tagged(self) -> list[Part] | None:
        fragment, self._held = self._parameters.read(self._held)
        if self._parameters.done:
            self._state = self._close
        elif not fragment:
            return None
        return [ToolCallArguments(self._calls - 1, fragment)]

    def _alone(self, written: str) -> list[Part] | None:
        """Returns the parts of a call that has a name and no arguments, or None if that is not what is written."""
        head = NAMED_ALONE.fullmatch(written)
        return self._whole(head["name"], "{}") if head is not None and head["name"] in self._names else None

    def _no_call(self, more: str) -> list[Part]:
        """Passes on as text what was consumed as the beginning of a call."""
        text, self._consumed = self._consumed + more, ""
        self._state, self._in_array = self._text, False
        if not self._marker and JSON_OBJECT.match(self._held):
            self._held, text, self._state, self._brackets = text + self._held, "", self._skip, Brackets()
        elif self._marker in ("", FUNCTION):
            text, self._held = text + self._held[:1], self._held[1:]
        return [Text(text)] if text else []

    def _skip(self) -> list[Part] | None:
        """Passes on an object or an array that is no call, to its end."""
        if not self._held:
            return None
        end = self._brackets.end(self._held, 0)
        shown, self._held = self._held[:end], self._held[len(self._held) if end is None else end :]
        self._state = self._skip if end is None else self._text
        return [Text(shown)]

    def _start(self, name: str, after: Callable[[], list[Part] | None]) -> list[Part]:
        self._consumed = ""
        self._calls += 1
        self._brackets = Brackets()
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
        rest, end = self._held.lstrip(), self._ends.get(self._marker, "")
        if rest[:1] == "," and self._in_array:
            self._held = rest[1:]
            self._begin()
            return []
        if rest[:1] == "]" and self._in_array:
            self._held, self._in_array = rest[1:], False
            return []
        if not rest or (len(rest) < len(end) and end.startswith(rest)):
            return None
        if end and rest.startswith(end):
            self._held = rest[len(end) :]
        elif self._unmarked and rest[0] == ";":
            return self._separated(rest)
        self._state = self._text
        return []

    def _separated(self, rest: str) -> list[Part] | None:
        """Consumes a semicolon between two calls that have no markers; before text it is text."""
        following = rest[1:].lstrip()
        if not following:
            return None
        self._state = self._text
        if following[0] == "{":
            self._marker, self._consumed, self._held = "", rest[: len(rest) - len(following)], following
            self._begin()
        return []

    def _skip_space(self) -> None:
        stripped = self._held.lstrip()
        self._consumed += self._held[: len(self._held) - len(stripped)]
        self._held = stripped
