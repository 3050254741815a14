"""Puts calls and their results into the order and the form in which a chat template takes them."""

import hashlib
import json
import re
from collections import deque
from collections.abc import Sequence
from itertools import chain

from octavo.server.text.call_formats import CALL, END_OF_CALL, CallFormat
from octavo.server.text.template_capabilities import Capabilities
from octavo.server.text.traced import of_template
from octavo.server.text.turns import Turn, TurnCall

_SHORT_ID = re.compile(r"[a-zA-Z0-9]{9}")


def paired(turns: Sequence[Turn], capabilities: Capabilities) -> list[Turn]:
    """Lets each call be followed by its results; what the template cannot show of a turn becomes a turn of its own."""
    if not capabilities.text_arguments:
        turns = [with_object_arguments(turn) for turn in turns]
    out: list[Turn] = []
    position = 0
    while position < len(turns):
        turn, position = turns[position], position + 1
        if turn["role"] == "tool":  # it follows no call
            out.append(turn if capabilities.lone_results else without_calls(turn))
        elif "tool_calls" not in turn:
            out.append(turn)
        else:
            following = _following(turns, position)
            out += _exchange(turn, [each for each in following if each["role"] == "tool"], capabilities)
            out += (each for each in following if each["role"] != "tool")
            position += len(following)
    return [with_short_ids(turn) for turn in out] if capabilities.short_ids_only else out


def _following(turns: Sequence[Turn], start: int) -> Sequence[Turn]:
    """Returns the turns from `start` up to the last result, between which only system messages stand."""
    end = position = start
    while position < len(turns) and turns[position]["role"] in ("tool", "system"):
        position += 1
        if turns[position - 1]["role"] == "tool":
            end = position
    return turns[start:end]


def _exchange(turn: Turn, results: Sequence[Turn], capabilities: Capabilities) -> list[Turn]:
    """Returns the calls of a turn, and their results in the order of the calls: few templates show ids."""
    by_call, others = _by_call(turn["tool_calls"], results)
    out: list[Turn] = []
    if turn["content"].strip() and not capabilities.text_with_calls:
        out.append({"role": turn["role"], "content": turn["content"]})
        turn = {**turn, "content": ""}
    if capabilities.parallel_calls or len(by_call) == 1:
        return [*out, turn, *(result for results in by_call for result in results), *others]
    for position, (call, its) in enumerate(zip(turn["tool_calls"], by_call, strict=True)):
        said: Turn = {"role": turn["role"], "content": ""} if position else turn
        out += [{**said, "tool_calls": [call]}, *its]
    return [*out, *others]


def _by_call(calls: Sequence[TurnCall], results: Sequence[Turn]) -> tuple[list[list[Turn]], list[Turn]]:
    """Returns the result of each call, and what is left. Ids need not be unique, nor known.

    A result of an unknown id belongs to the first call that has none.
    """
    by_id: dict[str, deque[Turn]] = {call["id"]: deque() for call in calls}
    strange: deque[Turn] = deque()
    for result in results:
        by_id.get(result["tool_call_id"], strange).append(result)
    by_call: list[list[Turn]] = [[by_id[call["id"]].popleft()] if by_id[call["id"]] else [] for call in calls]
    for call, its in zip(calls, by_call, strict=True):
        if not its and strange:
            its.append({**strange.popleft(), "tool_call_id": call["id"], "name": call["function"]["name"]})
    return by_call, [*chain.from_iterable(by_id.values()), *strange]


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


def with_written_calls(turn: Turn, format: CallFormat) -> Turn:
    """Writes calls as a model of the format does: its marker, which may be a special token, and an array of them."""
    if "tool_calls" not in turn:
        return turn
    calls = [
        {"name": call["function"]["name"], format.key: call["function"]["arguments"]} for call in turn["tool_calls"]
    ]
    written = of_template(format.marker) + json.dumps(calls, ensure_ascii=False)
    return {"role": turn["role"], "content": turn["content"] + written}


def with_object_arguments(turn: Turn) -> Turn:
    """Puts arguments that are text into an object, for templates that go through the names of arguments."""
    if "tool_calls" not in turn:
        return turn
    return {**turn, "tool_calls": [_with_object(call) for call in turn["tool_calls"]]}


def _with_object(call: TurnCall) -> TurnCall:
    arguments = call["function"]["arguments"]
    named = arguments if isinstance(arguments, dict) else {"arguments": arguments}
    return {**call, "function": {**call["function"], "arguments": named}}


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
