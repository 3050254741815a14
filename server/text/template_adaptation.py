"""Rewrites turns for chat templates that know no system message, no tools, no calls or not this order of turns.

A conversation is rewritten from its beginning to its end, and later turns do not change what earlier ones become, so
that the prefix cache finds these again.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import TypeVar

from octavo.server.http.errors import InvalidRequest
from octavo.server.text.call_formats import CALL, END_OF_CALL
from octavo.server.text.exchanges import paired, with_written_calls, without_calls
from octavo.server.text.template_capabilities import Capabilities, plainer
from octavo.server.text.template_trials import Render, has_texts, has_words, skeleton, tried
from octavo.server.text.turns import Kind, Tools, Turn, TurnCall, kind_of

Rendered = TypeVar("Rendered", bound=str)  # text that may know more than its characters

_INSTRUCTIONS = (
    "You can call these functions, each described by a JSON schema:\n<tools>\n{tools}\n</tools>\n"
    "To call one, answer with its name and its arguments as JSON, between these tags:\n"
    f"{CALL}\n" + '{{"name": "...", "arguments": {{...}}}}' + f"\n{END_OF_CALL}"
)


def nearest(
    turns: Sequence[Turn], tools: Tools, capabilities: Capabilities, render: Callable[[Sequence[Turn], Tools], Rendered]
) -> Rendered:
    """Renders the conversation in the nearest form in which the template takes and shows all of it.

    Without such a form it is the nearest that the template takes. Raises the first InvalidRequest of `render` when the
    template takes none.
    """
    rendered: list[Rendered] = []
    refusals: list[InvalidRequest] = []
    for known in plainer(capabilities):
        ordered, given = adapted(turns, tools, known)
        try:
            text = render(ordered, given)
        except InvalidRequest as error:
            refusals.append(error)
            continue
        if not known.complete or has_texts(text, ordered, given) or _shows_like(turns, tools, known, render):
            return text
        rendered.append(text)
    if not rendered:
        raise refusals[0]
    return rendered[0]


def adapted(turns: Sequence[Turn], tools: Tools, capabilities: Capabilities) -> tuple[Sequence[Turn], Tools]:
    """Rewrites whatever the template cannot render into a form that it can render.

    Returns the turns, and the tools that are left to the template.
    """
    native = capabilities.tool_calls and (capabilities.tools or not tools)
    if tools and not capabilities.tools:
        turns, tools = described(turns, tools), ()
    turns = paired(turns, capabilities) if native else _without_calls(turns, capabilities)
    turns = [_placed(turn, position, capabilities) for position, turn in enumerate(turns)]
    if not capabilities.repeated_roles:
        turns = merged(turns)
    return list(_joined(turns, capabilities, bool(tools))), tools


def _without_calls(turns: Sequence[Turn], capabilities: Capabilities) -> list[Turn]:
    """Writes calls as text: in the form that the template describes, if it describes one, or else in the plain one."""
    format = capabilities.call_format
    if format is None or capabilities.tool_calls or not capabilities.tools:
        return [without_calls(turn) for turn in turns]
    shown = replace(capabilities, text_arguments=True, parallel_calls=True, text_with_calls=True, lone_results=True)
    return [with_written_calls(turn, format) for turn in paired(turns, shown)]


def described(turns: Sequence[Turn], tools: Tools) -> list[Turn]:
    """Describes the tools in the first system turn, for templates that do not take tools."""
    text = _INSTRUCTIONS.format(tools="\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools))
    if turns and turns[0]["role"] == "system":
        return [{**turns[0], "content": f"{turns[0]['content']}\n\n{text}"}, *turns[1:]]
    return [{"role": "system", "content": text}, *turns]


def as_user(turn: Turn) -> Turn:
    """Makes a system turn one of the user."""
    return {**turn, "role": "user"} if turn["role"] == "system" else turn


def merged(turns: Sequence[Turn]) -> list[Turn]:
    """Joins turns of one role in a row, with a blank line between them; calls and their results stay apart."""
    merged: list[Turn] = []
    for kind, group in groupby(turns, kind_of):
        row = list(group)
        if len(row) == 1 or kind not in ("user", "assistant"):
            merged += row
            continue
        alike = all(turn.get("name") == row[0].get("name") for turn in row)
        one: Turn = row[0] if alike else {"role": row[0]["role"], "content": ""}
        merged.append({**one, "content": "\n\n".join(filter(None, (turn["content"] for turn in row)))})
    return merged


def _placed(turn: Turn, position: int, capabilities: Capabilities) -> Turn:
    return turn if (capabilities.later_systems if position else capabilities.system_role) else as_user(turn)


def _joined(turns: Sequence[Turn], capabilities: Capabilities, tools: bool) -> Iterator[Turn]:
    """Yields the turns, and between them those that the template needs to take one after the other."""
    before: Kind = "start"
    calls: Sequence[TurnCall] = ()
    for place, turn in enumerate(turns):
        kind = kind_of(turn)
        way = capabilities.bridges.get((before, kind), ())
        if before == "start" and tools and capabilities.tools_want_user_first and kind not in ("system", "user"):
            way = ("user",)
        for each in way:
            yield {**_filling(each, calls), "content": capabilities.filler, "place": place}
        silent = kind in ("user", "assistant") and not turn["content"]
        yield {**turn, "content": capabilities.filler} if silent else turn
        calls = turn.get("tool_calls", calls)
        before = before if (before, kind) == ("start", "system") else kind


def _filling(kind: Kind, calls: Sequence[TurnCall]) -> Turn:
    if kind != "result":
        return {"role": kind, "content": ""}
    call = calls[-1]
    return {"role": "tool", "content": "", "name": call["function"]["name"], "tool_call_id": call["id"]}


def _shows_like(turns: Sequence[Turn], tools: Tools, capabilities: Capabilities, render: Render) -> bool:
    """Returns whether the template shows all of a conversation of words that has the same order."""
    words, given = adapted(skeleton(turns), tools, capabilities)
    text = tried(render, words, given)
    return text is not None and has_words(text, words, tools)
