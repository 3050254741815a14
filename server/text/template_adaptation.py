"""Rewrites turns for chat templates that know no system message, no tools, no calls or no repeated roles."""

import hashlib
import json
import re
from collections.abc import Sequence

from octavo.server.text.template_capabilities import Capabilities, Tools
from octavo.server.text.turns import Turn

CALL, END_OF_CALL = "<tool_call>", "</tool_call>"  # ChatML models write calls between these tags
_SHORT_ID = re.compile(r"[a-zA-Z0-9]{9}")
_INSTRUCTIONS = (
    "You can call these functions, each described by a JSON schema:\n<tools>\n{tools}\n</tools>\n"
    "To call one, answer with its name and its arguments as JSON, between these tags:\n"
    f"{CALL}\n" + '{{"name": "...", "arguments": {{...}}}}' + f"\n{END_OF_CALL}"
)


def adapted(turns: Sequence[Turn], tools: Tools, capabilities: Capabilities) -> Sequence[Turn]:
    """Rewrites whatever the template cannot render into a form that it can render."""
    if tools and not capabilities.tools:
        turns = described(turns, tools)
    if not capabilities.tool_calls:
        turns = [without_calls(turn) for turn in turns]
    elif capabilities.short_ids_only:
        turns = [with_short_ids(turn) for turn in turns]
    if capabilities.system_role and capabilities.repeated_roles:
        return turns
    # A template that wants turns to alternate takes one system message, first.
    leading = 1 if capabilities.system_role else 0
    folded = [*turns[:leading], *(as_user(turn) for turn in turns[leading:])]
    return folded if capabilities.repeated_roles else merged(folded)


def described(turns: Sequence[Turn], tools: Tools) -> list[Turn]:
    """Describes the tools in the first system turn, for templates that do not take tools."""
    text = _INSTRUCTIONS.format(tools="\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools))
    if turns and turns[0]["role"] == "system":
        return [{**turns[0], "content": f"{turns[0]['content']}\n\n{text}"}, *turns[1:]]
    return [{"role": "system", "content": text}, *turns]


def without_calls(turn: Turn) -> Turn:
    """Writes calls as text of the assistant, and results as text of the user."""
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
    """Replaces the ids of calls by nine letters and digits: Mistral's templates refuse any others."""
    if "tool_call_id" in turn:
        return {**turn, "tool_call_id": _short(turn["tool_call_id"])}
    if "tool_calls" in turn:
        return {**turn, "tool_calls": [{**call, "id": _short(call["id"])} for call in turn["tool_calls"]]}
    return turn


def _short(id: str) -> str:
    """Returns the same short id for the same id, so that results still name their calls."""
    return id if _SHORT_ID.fullmatch(id) else hashlib.sha256(id.encode(errors="replace")).hexdigest()[:9]


def as_user(turn: Turn) -> Turn:
    """Makes a system turn one of the user."""
    return {**turn, "role": "user"} if turn["role"] == "system" else turn


def merged(turns: Sequence[Turn]) -> list[Turn]:
    """Joins turns of one role in a row, with a blank line between them; calls and their results stay apart."""
    merged: list[Turn] = []
    for turn in turns:
        if merged and merged[-1]["role"] == turn["role"] != "tool" and "tool_calls" not in merged[-1]:
            merged[-1] = {**turn, "content": merged[-1]["content"] + "\n\n" + turn["content"]}
        else:
            merged.append(turn)
    return merged
