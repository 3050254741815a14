"""Makes short conversations of words that no template has of its own, and looks for these words in rendered text."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from typing import Any

from octavo.server.text.turns import Kind, Tools, Turn, TurnCall

Render = Callable[[Sequence[Turn], Tools], str]

FUNCTION = "Frotz"
ARGUMENTS: Mapping[str, Any] = {"Xyzzy0000q": 1}
TOOL: Mapping[str, Any] = {
    "type": "function",
    "function": {
        "name": FUNCTION,
        "description": "Rezrov",
        "parameters": {"type": "object", "properties": {}, "required": []},
    },
}
_WORD = re.compile(r"Xyzzy\d+q")
_ROLES: Mapping[Kind, str] = {"call": "assistant", "result": "tool"}


def conversation(kinds: Sequence[Kind], id: str = "{:09}", text_with_calls: bool = False) -> list[Turn]:
    """Returns a turn of each kind, with a word of its own; a result belongs to the call before it.

    `id` is the form of the calls' ids.
    """
    turns: list[Turn] = []
    calls = 0
    for position, kind in enumerate(kinds):
        turn: Turn = {"role": _ROLES.get(kind, kind), "content": word(position)}
        if kind == "call":
            calls += 1
            turn |= {"content": word(position) if text_with_calls else "", "tool_calls": [call(id.format(calls))]}
        elif kind == "result":
            turn |= {"name": FUNCTION, "tool_call_id": id.format(calls)}
        turns.append(turn)
    return turns


def call(id: str, name: str = FUNCTION) -> TurnCall:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": dict(ARGUMENTS)}}


def word(number: int) -> str:
    """Returns a word that is part of no other such word."""
    return f"Xyzzy{number}q"


def skeleton(turns: Sequence[Turn]) -> list[Turn]:
    """Returns a conversation of the same order with a word for each text; what says nothing still says nothing."""
    numbers = count()
    return [_with_words(turn, numbers) for turn in turns]


def _with_words(turn: Turn, numbers: Iterator[int]) -> Turn:
    changed: Turn = {**turn, "content": word(next(numbers)) if turn["content"].strip() else turn["content"]}
    if "tool_calls" in turn:
        changed["tool_calls"] = [{**each, "function": _with_word(each, next(numbers))} for each in turn["tool_calls"]]
    return changed


def _with_word(call: TurnCall, number: int) -> Any:
    function = call["function"]
    return {**function, "arguments": {word(number): 1} if isinstance(function["arguments"], dict) else word(number)}


def tried(render: Render, turns: Sequence[Turn], tools: Tools = ()) -> str | None:
    """Returns the rendered text, or None if that fails: a template may raise anything."""
    try:
        return render(turns, tools)
    except Exception:
        return None


def shows(render: Render, turns: Sequence[Turn], tools: Tools = ()) -> bool:
    """Returns whether everything in a conversation of words appears in the rendered text."""
    text = tried(render, turns, tools)
    return text is not None and has_words(text, turns, tools)


def has_words(text: str, turns: Sequence[Turn], tools: Tools) -> bool:
    """Returns whether each word of a trial conversation or a skeleton, and each tool's name, is in the text."""
    functions = [call["function"] for turn in turns for call in turn.get("tool_calls", ())]
    words = [
        *(word for turn in turns for word in _WORD.findall(turn["content"])),
        *(word for function in functions for word in _WORD.findall(json.dumps(function["arguments"]))),
        *(function["name"] for function in functions),
        *(tool["function"]["name"] for tool in tools),
    ]
    return all(word in text for word in words)


def has_texts(text: str, turns: Sequence[Turn], tools: Tools) -> bool:
    """Returns whether the texts of a conversation are in the rendered text, one after the other, and the last tool.

    False does not mean that something is missing: a template may leave out thoughts, for example, or indent.
    """
    position = 0
    for turn in turns:
        # A template may put system messages elsewhere.
        end = _end(text, turn["content"].strip(), 0 if turn["role"] == "system" else position)
        for called in turn.get("tool_calls", ()):
            end = None if end is None else _end(text, called["function"]["name"], end)
        if end is None:
            return False
        position = position if turn["role"] == "system" else end
    return not tools or tools[-1]["function"]["name"] in text


def _end(text: str, wanted: str, start: int) -> int | None:
    """Returns where a text that is wanted after `start` ends, plain or as JSON; None if it is not there."""
    for form in (wanted, json.dumps(wanted, ensure_ascii=False)[1:-1]):
        found = text.find(form, start)
        if found >= 0:
            return found + len(form)
    return None
