"""Writes the grammar of what stands before an answer that a grammar binds: reasoning, and headers of harmony."""

from collections.abc import Mapping

from octavo.server.conversation.grammar_text import literal, quoted
from octavo.server.conversation.reading import Reading
from octavo.server.text import harmony
from octavo.server.text.reasoning_tags import ReasoningTags

_ANYTHING = r"/(.|\n)*/"
_SPACE = r"/[ \n]{0,4}/"  # models were trained to write an empty line before the answer


def before_answer(reading: Reading, tokens: Mapping[str, int], in_calls: bool) -> str:
    """Returns rules of Lark, the first of which is `before`; empty: nothing stands before the answer.

    `tokens` holds the ids of the markers that are tokens of their own. `in_calls`: the grammar of the answer is that of
    calls, which have harmony's last header in it.
    """
    if reading.format.harmony:
        return _harmony(reading.header, tokens, in_calls)
    return "" if reading.tags is None else _tags(reading.tags, reading.begun, tokens)


def _tags(tags: ReasoningTags, begun: bool, tokens: Mapping[str, int]) -> str:
    """Demands reasoning where the prompt begins it, and allows for it elsewhere."""
    thought = f"thought {_end(tags.end, tokens)} {_SPACE}"
    before = thought if begun else f"({literal(tags.start, tokens)} {thought})?"
    return f"before: {before}\n{_thought(tags.end, tokens)}\n"


def _harmony(header: str, tokens: Mapping[str, int], in_calls: bool) -> str:
    """Allows for messages of the channel `analysis`, and demands the header of the answer unless it is among calls."""
    channel, message, start = (literal(each, tokens) for each in (harmony.CHANNEL, harmony.MESSAGE, harmony.START))
    thought = f'thought {_end(harmony.END, tokens)} {start} "assistant"'
    final = "" if in_calls else f'{channel} "final" {message}'
    analyses = f'({channel} "analysis" {message} {thought})*'
    if header.endswith(harmony.MESSAGE):
        if harmony.channel_of(header) != "analysis":
            return ""
        analyses = f"{thought} {analyses}"
    return f"before: {analyses} {final}\n{_thought(harmony.END, tokens)}\n"


def _thought(end: str, tokens: Mapping[str, int]) -> str:
    """Returns the rule of reasoning, in which the token of the end cannot be; where that is text, it is the rule's."""
    return f"thought: {_ANYTHING}" if end in tokens else f"thought[suffix={quoted(end)}]: {_ANYTHING}"


def _end(end: str, tokens: Mapping[str, int]) -> str:
    return literal(end, tokens) if end in tokens else ""
