"""Finds the reasoning before an answer in a model's text, while it arrives."""

from collections.abc import Callable

from octavo.server.conversation.parts import Part, PartParser, Reasoning, Stage
from octavo.server.text.overlap import overlap
from octavo.server.text.reasoning_tags import ReasoningTags


class ReasoningParser:
    """Implements parts.PartParser. Each state consumes from the front of the held text, or waits for more.

        <think>    So, ...   </think>   The answer
        _before  | _inside | _after   | the parser of the answer

    Only the beginning of an answer can be reasoning: a tag further on is text. Space beside the tags is dropped.
    """

    def __init__(self, tags: ReasoningTags, begun: bool, answer: PartParser) -> None:
        """`begun` says that the prompt ends within the tags; a model may write the first one again all the same."""
        self._tags = tags
        self._begun = begun
        self._answer = answer
        self._held = ""  # received, not consumed yet
        self._state: Callable[[], list[Part] | None] = self._before

    @property
    def stage(self) -> Stage:
        reasons = self._state in (self._opened, self._inside) or (self._begun and self._state == self._before)
        return "reasoning" if reasons else "answer"

    def push(self, text: str) -> list[Part]:
        self._held += text
        parts: list[Part] = []
        while (found := self._state()) is not None:
            parts += found
        return parts

    def flush(self) -> list[Part]:
        """Returns what is left. Reasoning that has no end is still reasoning."""
        if self.stage == "reasoning":
            return [Reasoning(self._held)] if self._held.strip() else []
        left = "" if self._state == self._after else self._held
        return [*self._answer.push(left), *self._answer.flush()]

    def _before(self) -> list[Part] | None:
        """Consumes the first tag and the space before it; without it the answer begins."""
        rest = self._held.lstrip()
        self._held = rest if self._begun else self._held
        if len(rest) < len(self._tags.start) and self._tags.start.startswith(rest):
            return None
        is_reasoning = self._begun or rest.startswith(self._tags.start)
        self._held = rest.removeprefix(self._tags.start) if is_reasoning else self._held
        self._state = self._opened if is_reasoning else self._answering
        return []

    def _opened(self) -> list[Part] | None:
        """Consumes the space before the reasoning."""
        return self._skip_space(self._inside)

    def _inside(self) -> list[Part] | None:
        """Passes on reasoning up to the last tag, without the space before it; holds back what may become the tag."""
        thought, end, rest = self._held.partition(self._tags.end)
        if end:
            self._held, self._state = rest, self._after
            shown = thought.rstrip()
        else:
            shown = thought[: len(thought) - overlap(thought, self._tags.end)].rstrip()
            self._held = thought[len(shown) :]
        return [Reasoning(shown)] if shown else [] if end else None

    def _after(self) -> list[Part] | None:
        """Consumes the space before the answer."""
        return self._skip_space(self._answering)

    def _answering(self) -> list[Part] | None:
        text, self._held = self._held, ""
        return [*self._answer.push(text)] if text else None

    def _skip_space(self, state: Callable[[], list[Part] | None]) -> list[Part] | None:
        self._held = self._held.lstrip()
        if not self._held:
            return None
        self._state = state
        return []
