"""A turn is a message as chat templates know it."""

from typing import Any, NotRequired, TypedDict


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
