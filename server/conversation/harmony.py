"""Finds reasoning, text and calls in an answer that is written in harmony, while it arrives."""

import re
from collections.abc import Callable
from typing import Literal

from octavo.server.conversation.parts import Part, Reasoning, Stage, Text, ToolCallArguments, ToolCallStart
from octavo.server.text.harmony import (
    CALL,
    CHANNEL,
    CONSTRAIN,
    END,
    FUNCTIONS,
    MESSAGE,
    RETURN,
    START,
    channel_of,
    is_header,
    recipient_of,
)
from octavo.server.text.overlap import overlap

_Kind = Literal["text", "reasoning", "call"]

_OPENINGS = (START, CHANNEL, MESSAGE, CONSTRAIN, "to=")  # what a header begins with
_SURE_OPENINGS = (START, CHANNEL, MESSAGE, CONSTRAIN, f"to={FUNCTIONS}")
_ENDS = (END, RETURN, CALL)  # what closes a content
_BREAKS = (*_ENDS, START, CHANNEL)  # what ends a content; some models forget to close it before the next header
_BREAK = re.compile("|".join(map(re.escape, _BREAKS)))
_REACH = 512  # characters; a header ends within them


class HarmonyParser:
    """Implements parts.PartParser. Each state consumes from the front of the held text, or waits for more.

        <|channel|>analysis<|message|>  So...  <|end|>  <|start|>assistant<|channel|>final<|message|>  Two.
        _header                       | _content      | _header                                      | _content

    Messages of the channel `analysis` are reasoning, messages to a known function are calls, and all others are text.
    What has no header is text, and so is a message to somebody unknown, with its header.
    """

    def __init__(self, header: str, names: frozenset[str], new_id: Callable[[], str], parallel: bool = True) -> None:
        """`header` is how the prompt begins the answer. Calls after the first are passed on only if `parallel`."""
        self._names = names
        self._new_id = new_id
        self._most = None if parallel else 1
        self._held = ""  # received, not consumed yet
        self._calls = 0
        self._kind: _Kind = "reasoning" if channel_of(header) == "analysis" else "text"  # of the content
        self._is_new = True  # nothing of the content was passed on
        self._said: set[_Kind] = set()  # the kinds of which something was passed on
        is_open = header.endswith(MESSAGE)
        self._state: Callable[[], list[Part] | None] = self._content if is_open else self._header

    @property
    def stage(self) -> Stage:
        if self._state == self._header:
            return "markup"
        return "reasoning" if self._kind == "reasoning" else "answer"

    def push(self, text: str) -> list[Part]:
        self._held += text
        parts: list[Part] = []
        while (found := self._state()) is not None:
            parts += found
        return [part for part in parts if self._is_wanted(part)]

    def flush(self) -> list[Part]:
        """Returns what is left. A header that was cut says nothing."""
        left, self._held = self._held, ""
        if self._state == self._header:
            says_nothing = not left.strip() or (left.lstrip().startswith(_SURE_OPENINGS) and is_header(left))
            return [] if says_nothing else [*self._begun("text"), *self._passed(left)]
        return [part for part in [*self._passed(left), *self._closed()] if self._is_wanted(part)]

    def _is_wanted(self, part: Part) -> bool:
        return isinstance(part, Text | Reasoning) or self._most is None or part.index < self._most

    def _header(self) -> list[Part] | None:
        """Consumes a header, up to the content. What cannot be one is text."""
        written = self._held.lstrip()
        if written.startswith(_ENDS):  # Nothing is open.
            self._held = written[written.index(">") + 1 :]
            return []
        if not written.startswith(_OPENINGS):
            may_begin = any(marker.startswith(written) for marker in (*_OPENINGS, *_ENDS))
            return None if may_begin else self._begun("text")
        header, message, _ = written[:_REACH].partition(MESSAGE)
        if message:
            self._held = written[len(header) + len(message) :]
            return self._addressed(header)
        return None if len(written) < _REACH else self._no_header(written)

    def _no_header(self, written: str) -> list[Part]:
        """Passes on as text a marker after which no header follows."""
        marker = next(marker for marker in _OPENINGS if written.startswith(marker))
        self._held = written[len(marker) :]
        return [*self._begun("text"), *self._passed(marker)]

    def _addressed(self, header: str) -> list[Part]:
        """Begins the content of a message by what its header says. Text before a header is text."""
        lost, header = header[: max(header.rfind(START), 0)], header[max(header.rfind(START), 0) :]
        parts = [] if is_header(lost) else [*self._begun("text"), *self._passed(lost)]
        name = recipient_of(header)
        if name is not None and name.removeprefix(FUNCTIONS) in self._names:
            self._calls += 1
            start = ToolCallStart(self._calls - 1, self._new_id(), name.removeprefix(FUNCTIONS))
            return [*parts, *self._begun("call"), start]
        if channel_of(header) == "analysis":
            return [*parts, *self._begun("reasoning")]
        return [*parts, *self._begun("text"), *(self._passed(header + MESSAGE) if name is not None else [])]

    def _begun(self, kind: _Kind) -> list[Part]:
        self._kind, self._is_new, self._state = kind, True, self._content
        return []

    def _content(self) -> list[Part] | None:
        """Passes on content up to a marker; holds back what may become one."""
        found = _BREAK.search(self._held)
        if found is None:
            end = len(self._held) - max(overlap(self._held, marker) for marker in _BREAKS)
            shown, self._held = self._held[:end], self._held[end:]
            return self._passed(shown) if shown else None
        shown = self._held[: found.start()]
        self._held = self._held[found.end() if found[0] in _ENDS else found.start() :]
        parts = [*self._passed(shown), *self._closed()]
        self._state = self._header
        return parts

    def _passed(self, text: str) -> list[Part]:
        """Returns text as a part of the message's kind. An empty line sets it apart from an earlier message's."""
        if self._kind == "call":
            text = text.lstrip() if self._is_new else text
        elif text and self._is_new and self._kind in self._said:
            text = "\n\n" + text
        if not text:
            return []
        self._is_new = False
        self._said.add(self._kind)
        match self._kind:
            case "text":
                return [Text(text)]
            case "reasoning":
                return [Reasoning(text)]
            case "call":
                return [ToolCallArguments(self._calls - 1, text)]

    def _closed(self) -> list[Part]:
        """Ends a message. A call without arguments has none written."""
        return [ToolCallArguments(self._calls - 1, "{}")] if self._kind == "call" and self._is_new else []
