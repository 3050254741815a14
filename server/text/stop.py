"""Finds stop strings across the borders of tokens, and shows no part of one to the client."""

from collections.abc import Sequence


class StopStrings:
    """Releases text as soon as no part of it can begin a stop string.

        text     H e l l o   #
        stop               # # #
        released H e l l o _|  held until the next characters decide

    The stop string that is complete first ends the text; of several that end at the same character, the longest does.
    """

    def __init__(self, stops: Sequence[str], include: bool = False) -> None:
        """Makes the text end with its stop string if `include` is true, and before it otherwise."""
        self._stops = tuple(stops)
        self._include = include
        self._longest = max(map(len, stops), default=0)
        self._held = ""
        self.matched: str | None = None  # the stop string that ended the text

    def push(self, text: str) -> tuple[str, bool]:
        """Returns the text that can be shown now, and whether a stop string ended it; then nothing may follow."""
        if not self._stops:
            return text, False
        pending = self._held + text
        for end in range(len(self._held) + 1, len(pending) + 1):
            if pending.endswith(self._stops, 0, end):
                self.matched = max((stop for stop in self._stops if pending.endswith(stop, 0, end)), key=len)
                self._held = ""
                return pending[: end if self._include else end - len(self.matched)], True
        shown = self._first_place_of_a_beginning(pending)
        self._held = pending[shown:]
        return pending[:shown], False

    def _first_place_of_a_beginning(self, text: str) -> int:
        """Returns where the longest end of the text that begins a stop string starts.

        The places before it are released, so that each one is looked at in vain only once.
        """
        for place in range(max(0, len(text) - self._longest + 1), len(text)):
            end = text[place:]
            if any(stop.startswith(end) for stop in self._stops):
                return place
        return len(text)

    def flush(self) -> str:
        """Returns what was held back, when nothing can follow any more."""
        held, self._held = self._held, ""
        return held
