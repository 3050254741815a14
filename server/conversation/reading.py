"""Says how the text of an answer is read: what in it is reasoning, what are calls, and what is text."""

from collections.abc import Mapping
from dataclasses import dataclass

from octavo.server.conversation.calls import CallParser, new_id
from octavo.server.conversation.harmony import HarmonyParser
from octavo.server.conversation.parameter_types import Schema
from octavo.server.conversation.parts import PartParser, PlainText
from octavo.server.conversation.reasoning import ReasoningParser
from octavo.server.text import harmony
from octavo.server.text.call_formats import CallFormat
from octavo.server.text.reasoning_tags import ReasoningTags


@dataclass(frozen=True, slots=True)
class Reading:
    """Is made of plain data, so that it can be sent from one process to another."""

    format: CallFormat  # in which the model writes calls
    tools: Mapping[str, Schema] | None  # the schemas of those that can be called, by their names; None: none can
    short_ids: bool  # the ids of calls are as Mistral's templates demand them
    parallel: bool  # several calls may be passed on
    tags: ReasoningTags | None  # between which the model reasons
    begun: bool  # the answer begins between the tags
    header: str  # that begins the answer, where the model writes harmony

    def markers(self) -> tuple[str, ...]:
        """Returns texts that may be special tokens of the vocabulary, which decoding would hide."""
        tags = () if self.tags is None else (self.tags.start, self.tags.end)
        calls = () if self.tools is None and not self.format.harmony else self.format.tokens()
        return *calls, *tags

    def ends(self) -> tuple[str, ...]:
        """Returns markers that end the answer, also where the checkpoint does not list them among its end tokens."""
        return harmony.LAST if self.format.harmony else ()

    def parser(self) -> PartParser:
        """Returns a parser for one choice."""
        if self.format.harmony:
            return HarmonyParser(self.header, frozenset(self.tools or ()), new_id(self.short_ids), self.parallel)
        answer = self._answer()
        return answer if self.tags is None else ReasoningParser(self.tags, self.begun, answer)

    def _answer(self) -> PartParser:
        if self.tools is None:
            return PlainText()
        return CallParser(self.format, self.tools, new_id(self.short_ids), self.parallel)
