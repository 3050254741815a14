"""A turn is a message as chat templates know it."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NotRequired, TypedDict

Tools = Sequence[Mapping[str, Any]]  # as OpenAI describes them
Kind = Literal["start", "system", "user", "assistant", "call", "result"]  # what a turn is for the order of turns


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
    reasoning_content: NotRequired[str]  # what the model wrote for itself before
    name: NotRequired[str]
    tool_calls: NotRequired[list[TurnCall]]
    tool_call_id: NotRequired[str]
    place: NotRequired[int]  # tells turns that say nothing apart: Mistral's templates compare turns to find the last


def kind_of(turn: Turn) -> Kind:
    """Returns what the turn is; a role that is none of the known ones counts as the assistant's."""
    match turn["role"]:
        case "system" | "user" as role:
            return role
        case "tool":
            return "result"
        case _:
            return "call" if "tool_calls" in turn else "assistant"
