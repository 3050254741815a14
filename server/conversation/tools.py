"""Describes the tools that a request offers, and finds which of them the model may or must call."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from octavo.server.http.errors import FieldName, InvalidRequest
from octavo.server.http.fields import Object, refused_as

MAX_TOOLS = 128  # OpenAI's limit

_NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}


class ToolFunction(Object):
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,128}$")]
    """Names the function in at most 128 letters, digits, underscores, dashes and dots. OpenAI allows 64 and no dots."""
    description: str | None = None
    """Tells the model what the function does."""
    parameters: dict[str, Any] | None = None
    """Gives a JSON schema of type object. By default the function takes no arguments."""
    strict: bool | None = None
    """Changes nothing: calls that `tool_choice` demands keep to the schema whatever this says."""


class Tool(Object):
    type: Literal["function"]
    """Is always `function`: there are no other tools here."""
    function: ToolFunction
    """Describes the function."""

    @property
    def name(self) -> str:
        return self.function.name

    @property
    def schema_of_arguments(self) -> dict[str, Any]:
        return self.function.parameters or _NO_PARAMETERS

    def described(self) -> dict[str, Any]:
        """Returns the tool as chat templates take it."""
        function: dict[str, Any] = {"name": self.name}
        if self.function.description:
            function["description"] = self.function.description
        return {"type": "function", "function": {**function, "parameters": self.schema_of_arguments}}


class NamedFunction(Object):
    name: str
    """Names one of the tools."""


class NamedTool(Object):
    type: Literal["function"]
    """Is always `function`: there are no other tools here."""
    function: NamedFunction
    """Names the function."""


class AllowedTools(Object):
    mode: Literal["auto", "required"]
    """Demands a call if it is `required`."""
    tools: Annotated[list[NamedTool], Field(min_length=1, max_length=MAX_TOOLS)]
    """Lists the tools that may be called."""


class AllowedToolsChoice(Object):
    type: Literal["allowed_tools"]
    """Is always `allowed_tools`: the model may call some of the tools."""
    allowed_tools: AllowedTools
    """Says which tools, and whether one must be called."""


ToolChoice = Annotated[
    Literal["none", "auto", "required"] | NamedTool | AllowedToolsChoice,
    refused_as(
        'must be "none", "auto", "required", {"type": "function", "function": {"name": ...}} or '
        '{"type": "allowed_tools", "allowed_tools": {"mode": ..., "tools": [...]}}'
    ),
]


@dataclass(frozen=True, slots=True)
class ToolUse:
    """Says what the model may do with tools in its answer."""

    described: tuple[Tool, ...]  # the model is told of these
    callable: tuple[Tool, ...]  # the model may call these
    required: bool  # the model must call one
    parallel: bool  # the model may call several


def check_tools(tools: Sequence[Tool], choice: ToolChoice | None) -> None:
    """Raises InvalidRequest, which names the tool at fault, if the tools or the choice among them are wrong."""
    names = set()
    for position, tool in enumerate(tools):
        where = f"tools.{position}.function"
        if tool.name in names:
            raise InvalidRequest("Two tools have the name '{name}'; rename one.", f"{where}.name", name=tool.name)
        names.add(tool.name)
        if tool.function.parameters and tool.function.parameters.get("type") != "object":
            raise InvalidRequest('{param} must be a JSON schema with "type": "object".', f"{where}.parameters")
    if not tools and choice not in (None, "none", "auto"):
        raise InvalidRequest("{param} is only allowed with {tools}.", "tool_choice", tools=FieldName("tools"))
    for name in _chosen_names(choice):
        if name not in names:
            template = "{param} names '{name}', which is not among {tools}."
            raise InvalidRequest(template, "tool_choice", name=name[:128], tools=FieldName("tools"))


def tool_use(tools: Sequence[Tool], choice: ToolChoice | None, parallel: bool) -> ToolUse | None:
    """Returns None when nothing can be called. The arguments must have passed check_tools."""
    if not tools or choice == "none":
        return None
    names = _chosen_names(choice)
    chosen = tuple(tool for tool in tools if tool.name in names) if names else tuple(tools)
    match choice:
        case NamedTool():
            return ToolUse(tuple(tools), chosen, required=True, parallel=False)
        case AllowedToolsChoice():
            return ToolUse(chosen, chosen, choice.allowed_tools.mode == "required", parallel)
        case _:
            return ToolUse(chosen, chosen, choice == "required", parallel)


def _chosen_names(choice: ToolChoice | None) -> list[str]:
    match choice:
        case NamedTool():
            return [choice.function.name]
        case AllowedToolsChoice():
            return [tool.function.name for tool in choice.allowed_tools.tools]
        case _:
            return []
