"""Finds out, by rendering short trial conversations, what a chat template can render."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from octavo.server.text.turns import Turn, TurnCall

Tools = Sequence[Mapping[str, Any]]  # as OpenAI describes them
Render = Callable[[Sequence[Turn], Tools], str]

_FIRST, _SECOND = "Xyzzy", "Plugh"  # no template has these words of its own
_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": _FIRST,
        "description": _SECOND,
        "parameters": {"type": "object", "properties": {}, "required": []},
    },
}


@dataclass(frozen=True, slots=True)
class Capabilities:
    """Says what a chat template renders; the rest has to be adapted before it is rendered."""

    system_role: bool  # a system message, if it comes first
    repeated_roles: bool  # two turns of one role in a row
    tools: bool  # descriptions of tools
    tool_calls: bool  # calls of the assistant, and their results
    short_ids_only: bool  # calls only if their ids have nine letters and digits, as in Mistral's templates


def find_capabilities(render: Render) -> Capabilities:
    """Tries `render`, which may raise anything, on one conversation for each capability."""
    system, user = _turn("system", _FIRST), _turn("user", _SECOND)
    tool_calls = _shows(render, _exchange("123456789"))
    return Capabilities(
        system_role=_shows(render, [system, user]),
        repeated_roles=_shows(render, [_turn("user", _FIRST), user]),
        tools=_shows(render, [user], [_TOOL]),
        tool_calls=tool_calls,
        short_ids_only=tool_calls and not _shows(render, _exchange("call_123456789abcdef")),
    )


def _shows(render: Render, turns: Sequence[Turn], tools: Tools = ()) -> bool:
    """Returns whether everything in the conversation appears in the rendered text."""
    try:
        text = render(turns, tools)
    except Exception:  # a template may raise anything when it meets a conversation that it does not expect
        return False
    functions = [call["function"] for turn in turns for call in turn.get("tool_calls", ())]
    words = [
        *(turn["content"] for turn in turns),
        *(function["name"] for function in functions),
        *(key for function in functions for key in function["arguments"]),
        *(tool["function"]["name"] for tool in tools),
    ]
    return all(word in text for word in words)


def _turn(role: str, content: str) -> Turn:
    return {"role": role, "content": content}


def _exchange(id: str) -> list[Turn]:
    """Returns a question, a call with this id, and the call's result."""
    call: TurnCall = {"id": id, "type": "function", "function": {"name": "Frotz", "arguments": {"Nitfol": 1}}}
    result: Turn = {"role": "tool", "content": _SECOND, "name": "Frotz", "tool_call_id": id}
    return [_turn("user", _FIRST), {"role": "assistant", "content": "", "tool_calls": [call]}, result]
