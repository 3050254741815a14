"""Stop strings: found across token boundaries, and never shown to the client, not even in part."""

from collections.abc import Sequence


class _Matcher:
    """One stop string as a Knuth-Morris-Pratt automaton: each character costs constant time, however long it is.

    `length` is how many characters of the stop string the text ends with.
    """

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self.length = 0
        self._borders = _borders(stop)

    def advance(self, character: str) -> bool:
        """Whether the text now ends with the stop string."""
        while self.length and self.stop[self.length] != character:
            self.length = self._borders[self.length - 1]
        if self.stop[self.length] == character:
            self.length += 1
        return self.length == len(self.stop)


def _borders(text: str) -> list[int]:
    """For each prefix of text, the length of the longest proper prefix that is also its suffix."""
    borders = [0] * len(text)
    length = 0
    for position in range(1, len(text)):
        while length and text[length] != text[position]:
            length = borders[length - 1]
        if text[length] == text[position]:
            length += 1
        borders[position] = length
    return borders


class StopStrings:
    """Releases text as soon as no part of it can begin a stop string.

        text     H e l l o   #
        stop               # # #
        released H e l l o _|  held until the next characters decide

    The stop string that is complete first ends the text; of several that end at the same character, the longest.
    """

    def __init__(self, stops: Sequence[str], include: bool = False) -> None:
        """include: the stop string that ends the text is its end, not what follows it."""
        self._include = include
        self._matchers = [_Matcher(stop) for stop in stops]
        self._held = ""
        self.matched: str | None = None  # the stop string that ended the text

    def push(self, text: str) -> tuple[str, bool]:
        """The text that can be shown now, and whether a stop string ended it (then nothing may follow)."""
        if not self._matchers:
            return text, False
        pending = self._held + text
        for position, character in enumerate(text, start=len(self._held) + 1):
            complete = [len(m.stop) for m in self._matchers if m.advance(character)]
            if complete:
                self.matched = pending[position - max(complete) : position]
                self._held = ""
                return pending[: position if self._include else position - max(complete)], True
        held = max(matcher.length for matcher in self._matchers)
        self._held = pending[len(pending) - held :]
        return pending[: len(pending) - held], False

    def flush(self) -> str:
        """What was held back, when nothing can follow any more."""
        held, self._held = self._held, ""
        return held
