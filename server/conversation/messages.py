"""The messages that clients send, role by role, and the turns that they are for a chat template."""

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from octavo.server.http.errors import InvalidRequest
from octavo.server.http.fields import Object, refused_as
from octavo.server.text.turns import Turn, TurnCall


class TextPart(Object):
    type: Literal["text"]
    """This model reads text only."""
    text: str
    """A part of the message; parts are joined without a space."""


class RefusalPart(Object):
    type: Literal["refusal"]
    """Only in messages of the assistant."""
    refusal: str
    """What it said instead of an answer."""


Content = Annotated[
    str | Annotated[list[TextPart | RefusalPart], Field(fail_fast=True)],
    refused_as('must be a string or an array of {"type": "text", "text": ...}: this model reads text only'),
]


class CalledFunction(Object):
    name: str
    """The name of the function."""
    arguments: str
    """Its arguments: an object, as JSON text."""


class CallOfTool(Object):
    id: str
    """The result names its call by this."""
    type: Literal["function"]
    """Functions are the only tools here."""
    function: CalledFunction
    """What was called."""

    def turn(self) -> TurnCall:
        """Templates write the arguments as JSON themselves, so they get the object where there is one."""
        function = self.function
        return {
            "id": self.id,
            "type": "function",
            "function": {"name": function.name, "arguments": _decoded(function.arguments)},
        }


class Message(Object):
    """Of any role; `check` says what each of them needs."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    """Who says it; `developer` is the newer name of `system`."""
    content: Content | None = None
    """What is said: a string, or an array of text parts."""
    name: str | None = None
    """Who of several participants says it, for models whose template shows names."""
    refusal: str | None = None
    """What the assistant said instead of an answer."""
    tool_calls: list[CallOfTool] | None = None
    """The calls that the assistant made."""
    tool_call_id: str | None = None
    """In a message of the role `tool`: the call whose result it is."""

    def check(self, position: int) -> None:
        """Raises InvalidRequest for what the role does not have, and for a message that says nothing."""
        where = f"messages.{position}"
        if self.role == "function":
            raise InvalidRequest("The role 'function' is not supported; use 'tool' with 'tools'.", f"{where}.role")
        for name, advice in (("function_call", "use 'tool_calls'"), ("audio", "leave it out")):
            if self.model_extra and self.model_extra.get(name):
                template = "'{name}' is not supported by this server; {advice}."
                raise InvalidRequest(template, f"{where}.{name}", name=name, advice=advice)
        if self.role != "assistant" and self.tool_calls:
            raise InvalidRequest("Only the role 'assistant' has 'tool_calls'.", f"{where}.tool_calls")
        if self.role != "assistant" and any(isinstance(part, RefusalPart) for part in self._parts()):
            raise InvalidRequest("Only the role 'assistant' has parts of type 'refusal'.", f"{where}.content")
        if self.role == "tool" and self.tool_call_id is None:
            raise InvalidRequest("The required parameter {param} is missing.", f"{where}.tool_call_id")
        if self.content is None and not (self.role == "assistant" and (self.tool_calls or self.refusal)):
            raise InvalidRequest("The required parameter {param} is missing.", f"{where}.content")

    def turn(self) -> Turn:
        """As chat templates know it: plain text, `system` for OpenAI's newer `developer`."""
        turn: Turn = {"role": "system" if self.role == "developer" else self.role, "content": self._text()}
        if self.name:
            turn["name"] = self.name
        if self.tool_calls:
            turn["tool_calls"] = [call.turn() for call in self.tool_calls]
        if self.role == "tool" and self.tool_call_id is not None:
            turn["tool_call_id"] = self.tool_call_id
        return turn

    def _text(self) -> str:
        if self.content is None:
            return self.refusal or ""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text if isinstance(part, TextPart) else part.refusal for part in self._parts())

    def _parts(self) -> Sequence[TextPart | RefusalPart]:
        return self.content if isinstance(self.content, list) else ()


def turns_of(messages: Sequence[Message]) -> list[Turn]:
    """A result carries the name of the function that was called: some templates show it."""
    names: dict[str, str] = {}  # by id of the call
    turns = []
    for message in messages:
        names |= {call.id: call.function.name for call in message.tool_calls or ()}
        turn = message.turn()
        if (id := turn.get("tool_call_id")) in names and "name" not in turn:
            turn["name"] = names[id]
        turns.append(turn)
    return turns


def _decoded(arguments: str) -> Any:
    """The object that the text is, or the text: a model may have written what is no JSON."""
    try:
        value = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        return arguments
    return value if isinstance(value, dict) else arguments
