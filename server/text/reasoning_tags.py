"""Describes the tags between which models reason before they answer, and recognises those of a chat template."""

from dataclasses import dataclass

from octavo.server.text.template_trials import Render, conversation, tried, word
from octavo.server.text.traced import Traced, origins


@dataclass(frozen=True, slots=True)
class ReasoningTags:
    """Are what a model writes before and after its reasoning."""

    start: str
    end: str

    def opened_by(self, prompt: Traced) -> bool:
        """Returns whether the template ends the prompt with the first tag, so that the answer begins within it."""
        written = prompt.rstrip()
        return written.endswith(self.start) and 0 not in origins(written)[-len(self.start) :]

    def open_in(self, text: str) -> bool:
        """Returns whether the text begins to reason and does not end it."""
        return text.rfind(self.start) > text.rfind(self.end)


THINK = ReasoningTags("<think>", "</think>")
_KNOWN = (THINK, ReasoningTags("[THINK]", "[/THINK]"), ReasoningTags("<seed:think>", "</seed:think>"))


def recognised(render: Render) -> ReasoningTags | None:
    """Returns the tags that a template writes, shows or cuts; None if it knows none of them."""
    prompt = tried(render, conversation(("user",))) or ""
    reasoned = conversation(("user", "call", "result"))
    reasoned[1]["reasoning_content"] = word(len(reasoned))
    before, _, after = (tried(render, reasoned) or "").partition(word(len(reasoned)))
    for tags in _KNOWN:
        writes = tags.start in prompt or tags.end in prompt
        shows = before.rstrip().endswith(tags.start) and after.lstrip().startswith(tags.end)
        if writes or shows or _cuts(render, tags):
            return tags
    return None


def _cuts(render: Render, tags: ReasoningTags) -> bool:
    """Returns whether the template leaves out what an earlier answer has between the tags."""
    turns = conversation(("user", "assistant", "user"))
    said, thought = turns[1]["content"], word(len(turns))
    turns[1]["content"] = f"{tags.start}\n{thought}\n{tags.end}\n\n{said}"
    text = tried(render, turns)
    return text is not None and said in text and thought not in text
