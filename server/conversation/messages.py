"""Describes the messages that clients send, and turns them into what chat templates take."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from octavo.server.generation.parameters import UNSUPPORTED
from octavo.server.http.errors import InvalidRequest, missing_parameter
from octavo.server.http.fields import Object, refused_as
from octavo.server.http.reading import read_json
from octavo.server.text.turns import Turn, TurnCall

MAX_MESSAGES = 4096  # of a conversation
MAX_PARTS = 4096  # of a message


class TextPart(Object):
    type: Literal["text"]
    """Is always `text`: this model reads nothing else."""
    text: str
    """Holds a part of the message; parts are joined without a space."""


class RefusalPart(Object):
    type: Literal["refusal"]
    """Is always `refusal`; only the assistant's messages may have such parts."""
    refusal: str
    """Holds what the assistant said instead of an answer."""


Content = Annotated[
    str | Annotated[list[TextPart | RefusalPart], Field(fail_fast=True, max_length=MAX_PARTS)],
    refused_as(
        f'must be a string or an array of at most {MAX_PARTS:,} {{"type": "text", "text": ...}}: '
        "this model reads text only"
    ),
]


class CalledFunction(Object):
    name: str
    """Names the function."""
    arguments: str | None = None
    """Holds the arguments: an object, as JSON text. Null and empty text mean no arguments."""


class CallOfTool(Object):
    id: str
    """Identifies the call; its result refers to this."""
    type: Literal["function"]
    """Is always `function`: there are no other tools here."""
    function: CalledFunction
    """Says what was called."""

    def turn(self) -> TurnCall:
        """Returns the call as chat templates take it: with its arguments as an object if they are one."""
        function = self.function
        return {
            "id": self.id,
            "type": "function",
            "function": {"name": function.name, "arguments": _decoded(function.arguments)},
        }


class Message(Object):
    """Is a message of any role. Only the assistant has tool calls; the role `tool` needs the id of a call."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    """Says who speaks; `developer` is the newer name of `system`."""
    content: Content | None = None
    """Holds what is said, as a string or an array of text parts."""
    name: str | None = None
    """Names one of several participants, for models whose template shows names."""
    refusal: str | None = None
    """Holds what the assistant said instead of an answer."""
    reasoning_content: str | None = None
    """Holds what the assistant wrote for itself before it answered. The template decides whether the model sees it.

    This is an extension.
    """
    reasoning: str | None = None
    """Is another name of reasoning_content. This is an extension."""
    tool_calls: list[CallOfTool] | None = None
    """Lists the calls that the assistant made."""
    tool_call_id: str | None = None
    """Names the call whose result this message of the role `tool` is."""

    def check(self, position: int) -> None:
        """Raises InvalidRequest if the role does not have a field that is given, or if the message says nothing."""
        where = f"messages.{position}"
        if self.role == "function":
            raise InvalidRequest("The role 'function' is not supported; use 'tool' with 'tools'.", f"{where}.role")
        for name, advice in (("function_call", "use 'tool_calls'"), ("audio", "leave it out")):
            if self.model_extra and self.model_extra.get(name):
                template = "'{name}' is not supported by this server; {advice}."
                raise InvalidRequest(template, f"{where}.{name}", UNSUPPORTED, name=name, advice=advice)
        if self.role != "assistant" and self.tool_calls:
            raise InvalidRequest("Only the role 'assistant' has 'tool_calls'.", f"{where}.tool_calls")
        if self.role != "assistant" and (self.reasoning_content or self.reasoning):
            field = "reasoning_content" if self.reasoning_content else "reasoning"
            raise InvalidRequest("Only the role 'assistant' has reasoning.", f"{where}.{field}")
        if self.role != "assistant" and any(isinstance(part, RefusalPart) for part in self._parts()):
            raise InvalidRequest("Only the role 'assistant' has parts of type 'refusal'.", f"{where}.content")
        if self.role == "tool" and self.tool_call_id is None:
            raise missing_parameter(f"{where}.tool_call_id")
        if self.content is None and self.role != "assistant":
            raise missing_parameter(f"{where}.content")

    def turn(self) -> Turn:
        """Returns the message as chat templates take it: plain text, and `system` for OpenAI's newer `developer`."""
        turn: Turn = {"role": "system" if self.role == "developer" else self.role, "content": self._text()}
        if self.name:
            turn["name"] = self.name
        if reasoning := self.reasoning_content or self.reasoning:
            turn["reasoning_content"] = reasoning
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
    """Returns the turns of a conversation. A result gets the name of its function, since some templates show it."""
    names: dict[str, str] = {}  # id of the call -> name of the function
    turns = []
    for message in messages:
        names |= {call.id: call.function.name for call in message.tool_calls or ()}
        turn = message.turn()
        if (id := turn.get("tool_call_id")) in names and "name" not in turn:
            turn["name"] = names[id]
        turns.append(turn)
    return turns


def _decoded(arguments: str | None) -> Any:
    """Returns the object that the text is, or else the text: a model may have written what is not JSON.

    Null and space alone mean no arguments, and so does the text `null`.
    """
    if arguments is None or arguments.strip() in ("", "null"):
        return {}
    try:
        value = read_json(arguments)
    except ValueError:
        return arguments
    return value if isinstance(value, dict) else arguments
