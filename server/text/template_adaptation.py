"""Turns: messages as chat templates know them, and their plain forms for templates that know less."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, TypedDict

CALL, END_OF_CALL = "<tool_call>", "</tool_call>"  # the plain form, in which ChatML models write calls
_SHORT_ID = re.compile(r"[a-zA-Z0-9]{9}")
_INSTRUCTIONS = (
    "You can call these functions, each described by a JSON schema:\n<tools>\n{tools}\n</tools>\n"
    "To call one, answer with its name and its arguments as JSON, between these tags:\n"
    f"{CALL}\n" + '{{"name": "...", "arguments": {{...}}}}' + f"\n{END_OF_CALL}"
)


class TurnFunction(TypedDict):
    name: str
    arguments: Any  # an object where the text was valid JSON, else the text


class TurnCall(TypedDict):
    id: str
    type: str
    function: TurnFunction


class Turn(TypedDict):
    role: str
    content: str
    name: NotRequired[str]
    tool_calls: NotRequired[list[TurnCall]]
    tool_call_id: NotRequired[str]


def described(turns: Sequence[Turn], tools: Sequence[Mapping[str, Any]]) -> list[Turn]:
    """The tools as part of the first system turn, for templates that do not take them."""
    text = _INSTRUCTIONS.format(tools="\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools))
    if turns and turns[0]["role"] == "system":
        return [{**turns[0], "content": f"{turns[0]['content']}\n\n{text}"}, *turns[1:]]
    return [{"role": "system", "content": text}, *turns]


def without_calls(turn: Turn) -> Turn:
    """Calls as text of the assistant, and results as text of the user."""
    if turn["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{turn['content']}\n</tool_response>"}
    calls = [
        f"{CALL}\n{json.dumps(call['function'], ensure_ascii=False)}\n{END_OF_CALL}"
        for call in turn.get("tool_calls", ())
    ]
    if not calls:
        return turn
    return {"role": turn["role"], "content": "\n".join([*filter(None, [turn["content"]]), *calls])}


def with_short_ids(turn: Turn) -> Turn:
    """Ids of nine letters and digits: Mistral's templates refuse any other."""
    if "tool_call_id" in turn:
        return {**turn, "tool_call_id": _short(turn["tool_call_id"])}
    if "tool_calls" in turn:
        return {**turn, "tool_calls": [{**call, "id": _short(call["id"])} for call in turn["tool_calls"]]}
    return turn


def _short(id: str) -> str:
    """The same for the same id, so that results still name their calls."""
    return id if _SHORT_ID.fullmatch(id) else hashlib.sha256(id.encode(errors="replace")).hexdigest()[:9]


def as_user(turn: Turn) -> Turn:
    return {**turn, "role": "user"} if turn["role"] == "system" else turn


def merged(turns: Sequence[Turn]) -> list[Turn]:
    """Turns of one role in a row become one, a blank line between them; calls and their results stay apart."""
    merged: list[Turn] = []
    for turn in turns:
        if merged and merged[-1]["role"] == turn["role"] != "tool" and "tool_calls" not in merged[-1]:
            merged[-1] = {**turn, "content": merged[-1]["content"] + "\n\n" + turn["content"]}
        else:
            merged.append(turn)
    return merged
