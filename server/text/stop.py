"""Finds stop strings across the borders of tokens, and shows no part of one to the client."""

from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

_SHOWN, _HIDDEN = "s", "h"  # the two kinds of characters


class StopStrings:
    """Releases text as soon as no part of it can begin a stop string.

        text     H e l l o   #
        stop               # # #
        released H e l l o _|  held until the next characters decide

    The stop string that is complete first ends the text. Of several that end at the same character, the one that began
    first does. A stop string may contain the text of special tokens, which clients are not shown. So stop strings are
    looked for twice: in the text that is shown, and in all text.
    """

    def __init__(self, stops: Sequence[str], include: bool = False) -> None:
        """Makes the text end with its stop string if `include` is true, and before it otherwise."""
        self._include = include
        self._in_shown, self._in_all = _Search(stops), _Search(stops)
        self._some_hidden = False  # until then _in_all would be the same as _in_shown, and is idle
        self._kinds = ""  # the kind of each character of _in_all.begun
        self._held = ""  # shown text that may be part of a stop string
        self.matched: str | None = None  # the stop string that ended the text

    def push(self, text: str, hidden: bool = False) -> tuple[str, bool]:
        """Returns the text that can be shown now, and whether a stop string ended it; then nothing may follow.

        Hidden text is never shown, unless it is part of the stop string that ends the text, and that is included.
        """
        shown = "" if hidden else text
        pending = self._held + shown
        end = self._end(text, hidden)
        if end is not None:
            self.matched, self._held = end.stop, ""
            behind = len(shown[end.place :])
            return pending[: len(pending) - behind - end.shown] + (end.stop if self._include else ""), True
        held = max(len(self._in_shown.begun), self._kinds.count(_SHOWN))
        self._held = pending[len(pending) - held :]
        return pending[: len(pending) - held], False

    def _end(self, text: str, hidden: bool) -> "_End | None":
        """Returns the first end in the text, if there is one."""
        if hidden and not self._some_hidden:
            self._some_hidden = True
            self._in_all.begun, self._kinds = self._in_shown.begun, _SHOWN * len(self._in_shown.begun)
        ends = []
        if not hidden and (found := self._in_shown.push(text)) is not None:
            ends.append(_End(*found, shown=len(found[1])))
        if self._some_hidden:
            kinds = self._kinds + (_HIDDEN if hidden else _SHOWN) * len(text)
            if (found := self._in_all.push(text)) is not None:
                last = len(self._kinds) + found[0]
                ends.append(_End(*found, shown=kinds.count(_SHOWN, last - len(found[1]), last)))
            self._kinds = kinds[len(kinds) - len(self._in_all.begun) :]
        return min(ends, key=lambda end: (end.place, -end.shown, -len(end.stop)), default=None)

    def flush(self) -> str:
        """Returns what was held back, when nothing can follow any more."""
        held, self._held = self._held, ""
        return held


class _End(NamedTuple):
    """Tells which stop string is complete after `place` characters, and how many of its own are shown text."""

    place: int
    stop: str
    shown: int


class _Search:
    """Looks for stop strings in a text that comes in pieces. It keeps only what may be the beginning of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(sorted(stops))
        self._longest = max(map(len, stops), default=0)
        self.begun = ""  # the end of the text so far, from where it begins a stop string

    def push(self, text: str) -> tuple[int, str] | None:
        """Returns after how many characters of the piece a stop string is complete, and the longest that is."""
        if not self._stops:
            return None
        pending = self.begun + text
        for end in range(len(self.begun) + 1, len(pending) + 1):
            if pending.endswith(self._stops, 0, end):
                stop = max((stop for stop in self._stops if pending.endswith(stop, 0, end)), key=len)
                return end - len(self.begun), stop
        self.begun = pending[self._first_place_of_a_beginning(pending) :]
        return None

    def _first_place_of_a_beginning(self, text: str) -> int:
        """Returns where the longest end of the text that begins a stop string starts.

        The places before it are done with, so that each one is looked at in vain only once. Among sorted strings, one
        that begins with an end of the text stands where that end would.
        """
        for place in range(max(0, len(text) - self._longest + 1), len(text)):
            end = text[place:]
            found = bisect_left(self._stops, end)
            if found < len(self._stops) and self._stops[found].startswith(end):
                return place
        return len(text)
